"""A verdict is plain data: it outlives the model, and crosses processes."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import pickle
import weakref
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, InvariantBroken, Verdict, frozen, frozen_bn
from pytest_bninvariants.invariants.frozen import earlier_runs
from pytest_bninvariants.reporting import verdict_text
from pytest_bninvariants.reporting.verdict_text import render
from pytest_bninvariants.verdict import Change, ChangeKind, Hazard

PLAIN = (str, int, float, bool, type(None))


def atoms(value: object) -> list[object]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [a for f in dataclasses.fields(value) for a in atoms(getattr(value, f.name))]
    if isinstance(value, tuple):
        return [a for part in value for a in atoms(part)]
    return [value]


def everything_at_once(net: Any, batch: Tensor) -> None:
    net.train()(batch)
    net.head.weight.data += 1
    net.head.bias = nn.Parameter(net.head.bias.detach().clone())
    net.neck.eps = 0.1
    net.neck.momentum = None
    net.backbone.conv.bias.requires_grad_(True)
    net.backbone.conv.double()
    net.register_buffer("extra", torch.ones(1))
    del net.neck.bias


STEPS: dict[str, Callable[[Any, Tensor], object]] = {
    "training": lambda net, batch: net.train()(batch),
    "everything": everything_at_once,
    "replaced": lambda net, batch: setattr(net, "neck", nn.BatchNorm1d(3)),
    "without": lambda net, batch: net.neck.__setattr__("running_mean", None),
}


def broken(net: Any, batch: Tensor, step: Callable[[Any, Tensor], object]) -> Verdict:
    net.backbone.conv.bias.requires_grad_(False)
    with pytest.raises(FrozenStateChanged) as caught, frozen(net):
        step(net, batch)
    return caught.value.verdict


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_verdict_holds_plain_data_alone(
    net: Any, batch: Tensor, step: Callable[[Any, Tensor], object]
) -> None:
    verdict = broken(net, batch, step)
    assert all(type(atom) in PLAIN for atom in atoms(verdict))
    assert json.loads(json.dumps(dataclasses.asdict(verdict)))["guard"] == "frozen()"
    assert {change.kind for change in verdict.changes} <= set(get_args(ChangeKind))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_verdict_pickles_and_copies(
    net: Any, batch: Tensor, step: Callable[[Any, Tensor], object]
) -> None:
    verdict = broken(net, batch, step)
    assert pickle.loads(pickle.dumps(verdict)) == verdict
    assert copy.deepcopy(verdict) == verdict
    assert hash(verdict) == hash(pickle.loads(pickle.dumps(verdict)))


def test_a_verdict_keeps_no_model_and_no_tensor_alive(batch: Tensor) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    guard = frozen_bn(model)
    with earlier_runs.remembering(None), pytest.raises(FrozenStateChanged) as caught, guard:
        model(batch)
    verdict = caught.value.verdict
    layer, mean = weakref.ref(model[0]), weakref.ref(model[0].running_mean)
    del guard, model, caught
    gc.collect()
    assert layer() is None
    assert mean() is None
    assert not verdict.holds


def test_a_verdict_cannot_be_changed(net: Any, batch: Tensor) -> None:
    verdict = broken(net, batch, STEPS["training"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.changes = ()  # type: ignore[misc]


def verdict_of(*changes: Change, **more: Any) -> Verdict:
    plain = {"guard": "frozen()", "noun": "frozen layer", "model": "Net", "source": ""}
    return Verdict(**{**plain, "layers": 9, "tensors": 9, "changes": changes, **more})


def change(name: str, kind: str = "values") -> Change:
    layer = name if kind in ("eps", "batch-statistics") else name.rpartition(".")[0]
    return Change(name=name, layer=layer, kind=kind, text="")  # type: ignore[arg-type]


def test_a_verdict_without_changes_holds_whatever_its_hazards() -> None:
    assert verdict_of(hazards=(Hazard(name="a", text="b"),)).holds
    assert not verdict_of(change("a.b")).holds


def test_layers_and_tensors_are_named_once_in_order() -> None:
    verdict = verdict_of(
        change("b.weight"),
        change("b.bias"),
        change("b", "eps"),
        change("a.weight"),
        change("c", "batch-statistics"),
        change("top"),
    )
    assert verdict.changed_layers == ("b", "a", "c", "")
    assert verdict.changed_tensors == ("b.weight", "b.bias", "a.weight", "top")


def test_a_violation_gives_the_first_of_its_verdicts() -> None:
    first, second = verdict_of(change("a.b")), verdict_of(change("c.d"))
    failure = FrozenStateChanged(first, second)
    assert failure.verdict is first
    assert failure.verdicts == (first, second)
    assert str(failure) == render((first, second))
    assert repr(failure) == f"FrozenStateChanged({str(failure).splitlines()[0]!r})"


def test_a_text_is_made_once_and_again_only_to_be_unfolded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    failure = InvariantBroken(
        verdict_of(*(change(f"layer{number}.weight") for number in range(40)))
    )
    monkeypatch.setattr(
        verdict_text,
        "render",
        lambda *args, **options: made.append(options) or render(*args, **options),
    )
    assert repr(failure)
    assert made == []
    folded = str(failure), str(failure)
    assert folded[0] == folded[1] == render(failure.verdicts)
    failure.unfold()
    failure.unfold()
    assert str(failure) == str(failure) == render(failure.verdicts, verbose=True)
    assert [options["verbose"] for options in made] == [False, True]


@pytest.mark.parametrize("verbose", [False, True])
def test_a_violation_is_the_same_in_another_process(verbose: bool) -> None:
    failure = FrozenStateChanged(verdict_of(change("a.b")), verdict_of(change("c.d")))
    failure.__dict__["_raised_at"] = test_a_violation_is_the_same_in_another_process.__code__
    if verbose:
        failure.unfold()
    copy = pickle.loads(pickle.dumps(failure))
    assert type(copy) is FrozenStateChanged
    assert copy.verdicts == failure.verdicts
    assert str(copy) == str(failure)
