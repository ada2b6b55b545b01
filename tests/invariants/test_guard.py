"""What a guard finds, how it is spelled, and what it raises."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import (
    FrozenStateChanged,
    GateError,
    frozen,
    frozen_bn,
    run_config,
)
from pytest_bninvariants.errors import describe
from pytest_bninvariants.run_config import RunConfig
from tests.invariants.guard_steps import GUARDS
from tests.watching import watching


def test_a_step_that_changes_nothing_holds(net: Any, batch: Tensor) -> None:
    with frozen(net) as guard:
        net(batch)
    assert guard.verdict is not None
    assert guard.verdict.holds
    assert guard.verdict.changes == guard.verdict.causes == guard.verdict.hazards == ()


@GUARDS
def test_a_step_that_changes_something_is_named_in_the_first_line(
    net: Any, batch: Tensor, guard: Any
) -> None:
    net.neck.train()
    with pytest.raises(FrozenStateChanged) as caught, guard(net):
        net(batch)
    headline = str(caught.value).splitlines()[0]
    assert headline.endswith("changed: neck (training-mode)")
    assert caught.value.verdict.changed_layers == ("neck",)


def test_the_guard_holds_its_verdict_also_when_it_raises(net: Any, batch: Tensor) -> None:
    guard = frozen_bn(net.train())
    with pytest.raises(FrozenStateChanged) as caught, guard:
        net(batch)
    assert guard.verdict is caught.value.verdict
    assert caught.value.verdicts == (guard.verdict,)


@pytest.mark.parametrize(
    ("make", "spelled"),
    [
        (lambda net: frozen_bn(net), "frozen_bn()"),
        (lambda net: frozen(net, "neck", "head"), "frozen('neck', 'head')"),
        (lambda net: frozen(net, parameters=False), "frozen(parameters=False)"),
        (lambda net: frozen_bn(net, "neck", buffers=False), "frozen_bn('neck', buffers=False)"),
        (lambda net: frozen(net, allow_batch_stats=True), "frozen(allow_batch_stats=True)"),
        (lambda net: frozen(net, exclude="neck"), "frozen(exclude='neck')"),
        (lambda net: frozen(net, exclude=["neck"]), "frozen(exclude='neck')"),
        (lambda net: frozen(net, exclude=("neck", "head")), "frozen(exclude=['neck', 'head'])"),
    ],
)
def test_a_guard_is_spelled_as_its_user_wrote_it(
    net: Any, batch: Tensor, make: Callable[[Any], Any], spelled: str
) -> None:
    with make(net) as guard:
        net(batch)
    assert guard.spelling == guard.verdict.guard == spelled


@pytest.mark.parametrize(
    ("histories", "kept"),
    [("none", [False, False]), ("broken", [False, True]), ("all", [True, True])],
)
def test_the_history_of_statistics_is_kept_of_the_guards_that_a_report_shows(
    net: Any, batch: Tensor, histories: Any, kept: list[bool]
) -> None:
    def step(training: bool) -> None:
        with suppress(FrozenStateChanged), guard:
            net.train(training)(batch)

    has_history = []
    with run_config.activate(RunConfig(histories=histories)):
        for training in (False, True):
            guard = frozen_bn(net.eval())
            step(training)
            assert guard.verdict is not None
            has_history.append(guard.verdict.history is not None)
    assert has_history == kept


def test_a_guard_that_held_keeps_no_model_alive(net: Any, batch: Tensor) -> None:
    model = type(net)().eval()
    with watching(frozen(model), layers=4, tensors=14):
        model(batch)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_a_violation_is_an_assertion_error_and_a_gate_error_is_none() -> None:
    assert issubclass(FrozenStateChanged, AssertionError)
    assert not issubclass(GateError, AssertionError)


def test_a_violation_pickles(net: Any, batch: Tensor) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(net.train()):
        net(batch)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is FrozenStateChanged
    assert str(copy) == str(caught.value)
    assert copy.verdicts == caught.value.verdicts
    assert copy.verdict.changes == caught.value.verdict.changes


def test_a_gate_error_pickles(net: Any) -> None:
    with pytest.raises(GateError) as caught, frozen_bn(net, "typo"):
        pass
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is GateError
    assert str(copy) == str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1 (int)"),
        ("a", "'a' (str)"),
        (nn.Linear(1, 1), "<Linear>"),
        (torch.ones(3, 4), "<Tensor of shape (3, 4)>"),
        ([torch.ones(3), nn.Linear(1, 1)], "[<Tensor of shape (3,)>, <Linear>] (list)"),
        (nn.LazyLinear(1).weight, "<UninitializedParameter> (UninitializedParameter)"),
        ("x" * 99, "'" + "x" * 56 + "... (str)"),
    ],
)
def test_a_value_is_shown_on_one_short_line(value: object, text: str) -> None:
    assert describe(value) == text


class SilentRepr:
    def __repr__(self) -> str:
        return ""


def test_a_value_with_an_empty_repr_is_shown_by_its_type() -> None:
    assert "SilentRepr" in describe(SilentRepr())


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pytest", "_pytest", "pluggy"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
import torch
from torch import nn
import pytest_bninvariants.invariants.guard
from pytest_bninvariants import FrozenStateChanged, frozen_bn
model = nn.Sequential(nn.BatchNorm1d(2)).train()
try:
    with frozen_bn(model):
        model(torch.ones(4, 2))
except FrozenStateChanged as failure:
    print(str(failure).splitlines()[0])
assert not {"pytest", "_pytest", "pluggy"} & sys.modules.keys()
"""


def test_the_engine_runs_without_pytest() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKED], capture_output=True, text=True, check=False
    )
    assert ran.stderr == ""
    assert ran.stdout.strip() == "1 of 1 frozen BN layer changed: 0 (training-mode)"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, pytest_bninvariants; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
