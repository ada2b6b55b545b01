"""Guards within, beside and across each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_bninvariants import (
    FrozenStateChanged,
    InvariantBroken,
    frozen,
    frozen_bn,
)
from pytest_bninvariants.guard_registry import Finding
from pytest_bninvariants.invariants.conclude import conclude
from tests.invariants.guard_steps import drift_and_raise, started


def test_nested_guards_note_the_drift_once_each(
    net: Any, batch: Tensor, findings: list[Finding]
) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine"), frozen(net, "neck"), frozen(net, "backbone"):
        drift_and_raise(net, batch, error)
    inner, outer = error.__notes__
    assert "frozen('backbone')" in inner
    assert "frozen('neck')" in outer
    assert [finding.carrier for finding in findings] == [error, error]
    findings.clear()


def test_a_broken_inner_guard_does_not_blind_the_outer_one(net: Any, batch: Tensor) -> None:
    inner, outer = frozen(net, "neck"), frozen(net, "backbone")
    with (
        pytest.raises(FrozenStateChanged) as caught,
        outer,
        pytest.raises(FrozenStateChanged),
        inner,
    ):
        net.train()(batch)
    assert inner.verdict is not None
    assert inner.verdict.changed_layers == ("neck",)
    assert caught.value.verdict.changed_layers == ("backbone.bn",)


def test_the_inner_guards_failure_is_the_outer_ones_exception(net: Any, batch: Tensor) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen(net, "backbone"), frozen(net, "neck"):
        net.train()(batch)
    assert caught.value.verdict.guard == "frozen('neck')"
    (note,) = caught.value.__notes__
    assert "frozen('backbone')" in note


def test_overlapping_guards_each_see_their_own_step(
    net: Any, batch: Tensor, torch_state: Callable[[], dict[str, Any]]
) -> None:
    before = torch_state()
    first, second = frozen(net), frozen_bn(net)
    first.start()
    net(batch)
    second.start()
    assert first.finish().holds
    net.train()(batch)
    assert torch_state() != before
    assert not second.finish().holds
    assert torch_state() == before


def test_guards_around_several_models_see_their_own(net: Any, batch: Tensor) -> None:
    other = type(net)().eval()
    quiet = frozen(other)
    with pytest.raises(FrozenStateChanged) as caught, quiet, frozen(net):
        net.train()(other(batch).new_zeros(4, 2, 5) + batch)
    assert caught.value.verdict.changed_layers == ("backbone.bn", "neck")
    assert not hasattr(caught.value, "__notes__")
    assert quiet.verdict is not None
    assert quiet.verdict.holds


def test_guards_in_threads_do_not_mix(net: Any) -> None:
    nets = [type(net)().train(number % 2 == 0) for number in range(8)]
    ended: dict[int, bool] = {}

    def work(number: int) -> None:
        try:
            with frozen_bn(nets[number]):
                for _ in range(5):
                    nets[number](torch.randn(4, 2, 5))
        except FrozenStateChanged:
            ended[number] = False
        else:
            ended[number] = True

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == {number: number % 2 == 1 for number in range(8)}


def test_a_guard_in_a_thread_ends_in_another(
    net: Any, batch: Tensor, torch_state: Callable[[], dict[str, Any]]
) -> None:
    before = torch_state()
    guard = frozen(net)
    thread = threading.Thread(target=guard.start)
    thread.start()
    thread.join()
    net(batch)
    assert guard.finish().holds
    assert torch_state() == before


def test_guards_that_end_together_are_told_apart(net: Any, batch: Tensor) -> None:
    guard = [started(net, "neck"), started(net, "backbone"), started(net, "head")]
    net.train()(batch)
    with pytest.raises(FrozenStateChanged) as caught:
        conclude(guard, None)
    assert [verdict.guard for verdict in caught.value.verdicts] == [
        "frozen('neck')",
        "frozen('backbone')",
    ]
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("frozen('neck'): 1 of 1 frozen layer changed: neck")
    second = "frozen('backbone'): 1 of 2 frozen layers changed: backbone.bn"
    assert sum(second in line for line in lines) == 1


def test_a_companion_judges_the_same_step(net: Any, batch: Tensor) -> None:
    guard = frozen(net, "backbone", trains="head")
    with pytest.raises(InvariantBroken) as caught, guard:
        net(batch)
    assert guard.companion is not None
    assert guard.parts == (guard, guard.companion)
    assert caught.value.verdicts == (guard.companion.verdict,)
    assert guard.verdict is not None
    assert guard.verdict.holds
