"""The oracle can fail: it contradicts a guard that misses, invents, miscounts or leaves a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from pytest_bninvariants import Verdict
from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.state_change.layer_activity import LayerActivity
from pytest_bninvariants.verdict import Cause
from tests.oracle.actions.averages import DECAY
from tests.oracle.comparison import Disagreement
from tests.oracle.machines import CauseMachine
from tests.oracle.models import ModelSpec
from tests.oracle.scopes import Ask

pytestmark = pytest.mark.filterwarnings("ignore")
Spoil = Callable[[Verdict], Verdict]


def oracle(*blocks: str) -> CauseMachine:
    """Return a machine with a model that is in eval."""
    machine = CauseMachine()
    spec = ModelSpec(blocks, wrapper="none", tie="none", frozen=0, warm=True, seed=0)
    machine.build(spec)
    machine.do("eval_the_model", 0)
    return machine


def ends(kind: str, *actions: str, spoil: Spoil = lambda verdict: verdict) -> None:
    """Guard some actions, spoil the verdict, and let the oracle judge it."""
    machine = oracle("bn")
    machine.do("make_a_teacher", 0)
    machine.start(kind, Ask(options={"decay": DECAY} if kind == "in_sync" else {}))
    (span,) = machine.open
    for seed, name in enumerate(actions):
        machine.do(name, seed)
    machine.end(machine.open.pop(), interrupted=False)
    assert span.verdict is not None
    span.verdict = spoil(span.verdict)
    machine.settle()


LEAK = ("train_the_model", "forward")


def without_changes(verdict: Verdict) -> Verdict:
    return replace(verdict, changes=(), causes=())


def without_the_last_change(verdict: Verdict) -> Verdict:
    return replace(verdict, changes=verdict.changes[:-1])


def with_cause(**changed: Any) -> Spoil:
    def spoil(verdict: Verdict) -> Verdict:
        cause: Cause = replace(verdict.causes[0], **changed)
        return replace(verdict, causes=(cause,))

    return spoil


SPOILT: dict[str, tuple[str, tuple[str, ...], Spoil]] = {
    "a leak that is missed": ("frozen_bn", LEAK, without_changes),
    "a name that is dropped": ("frozen", LEAK, without_the_last_change),
    "another cause": ("frozen_bn", LEAK, with_cause(name="loaded")),
    "a cause that is not asked for": ("frozen_bn", LEAK, with_cause(name="recomputation")),
    "no cause": ("frozen_bn", LEAK, lambda verdict: replace(verdict, causes=())),
    "another number": (
        "frozen_bn",
        LEAK,
        with_cause(why="it normalised 2 batches with batch statistics"),
    ),
    "an update too many": ("bn_updates", (*LEAK, "forward_and_backward"), without_changes),
    "what did not train": ("trains", LEAK, without_changes),
    "another cause of an update too many": (
        "bn_updates",
        (*LEAK, "forward_and_backward"),
        with_cause(name="recomputation"),
    ),
    "another cause of what did not train": ("trains", LEAK, with_cause(name="zero-gradient")),
    "another cause of an average": (
        "in_sync",
        ("train_one_batch", "update_the_teacher_with_another_decay"),
        with_cause(name="updated-early"),
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_verdict_that_is_wrong_is_contradicted(kind: str) -> None:
    guard, actions, spoil = SPOILT[kind]
    ends(guard, *actions)
    with pytest.raises(Disagreement):
        ends(guard, *actions, spoil=spoil)


def test_a_guard_that_changes_the_model_is_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_bninvariants.invariants.frozen.guard import FrozenGuard

    end = FrozenGuard._end

    def leave_a_hook(guard: FrozenGuard) -> None:
        end(guard)
        guard.model.head.register_forward_hook(lambda *_: None)

    monkeypatch.setattr(FrozenGuard, "_end", leave_a_hook)
    with pytest.raises(Disagreement, match="not as without guards"):
        ends("frozen_bn", "forward")


def test_a_guard_that_leaves_a_patch_is_contradicted() -> None:
    train = nn.Module.train
    machine = oracle("bn")
    try:
        nn.Module.train = lambda module, mode=True: train(module, mode)
        with pytest.raises(Disagreement, match="left patched"):
            machine.settle()
    finally:
        nn.Module.train = train


def test_a_witness_that_counts_twice_is_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    count = LayerActivity.count

    def count_twice(activity: LayerActivity, kind: Any, *, in_eval: bool) -> None:
        count(activity, kind, in_eval=in_eval)
        count(activity, kind, in_eval=in_eval)

    monkeypatch.setattr(LayerActivity, "count", count_twice)
    with pytest.raises(Disagreement, match="normalised 1 batches"):
        ends("frozen_bn", *LEAK)
    assert not observer_api.active_observers
