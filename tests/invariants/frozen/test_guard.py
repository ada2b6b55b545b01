"""How `frozen` and `frozen_bn` are called, and what a guard keeps while it guards."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from pytest_bninvariants import (
    FrozenStateChanged,
    GateError,
    InvariantBroken,
    frozen,
    frozen_bn,
)
from pytest_bninvariants.guard_registry import Finding
from tests.watching import watching

OF_BOTH = pytest.mark.parametrize("invariant", [frozen, frozen_bn])


@OF_BOTH
def test_a_call_without_a_model_is_an_error_of_the_gate(invariant: Any) -> None:
    with pytest.raises(GateError, match=rf"^{invariant.__name__}\(\): missing a required"):
        invariant()


@OF_BOTH
@pytest.mark.parametrize("nothing", [(), []])
def test_trains_that_names_nothing_is_an_error_of_the_gate(
    net: Any, invariant: Any, nothing: Any
) -> None:
    with pytest.raises(GateError, match=r"trains= names what must train, and .* names nothing"):
        invariant(net, trains=nothing)


@OF_BOTH
def test_only_what_trains_names_has_to_train(net: Any, batch: Tensor, invariant: Any) -> None:
    with watching(invariant(net, "neck"), layers=1, tensors=5):
        net(batch)
    guard = invariant(net, "neck", trains=["head", "backbone.conv"])
    with pytest.raises(InvariantBroken) as broken, guard:
        net(batch)
    named = ["backbone.conv.weight", "backbone.conv.bias", "head.weight", "head.bias"]
    assert sorted(broken.value.verdict.changed_layers) == sorted(named)
    assert guard.spelling == f"{invariant.__name__}('neck', trains=['head', 'backbone.conv'])"


@OF_BOTH
def test_a_guard_in_which_nothing_ran_does_not_hold(net: Any, invariant: Any) -> None:
    with pytest.raises(GateError, match=r"^nothing ran inside frozen"), invariant(net):
        pass


@OF_BOTH
def test_a_change_of_a_model_that_did_not_run_breaks_a_guard(net: Any, invariant: Any) -> None:
    with pytest.raises(FrozenStateChanged), invariant(net):
        net.neck.running_mean.data.add_(1)


@OF_BOTH
def test_a_guard_keeps_its_snapshot_only_while_it_guards(
    net: Any, batch: Tensor, invariant: Any
) -> None:
    guard = invariant(net, "neck")
    with watching(guard, layers=1, tensors=5):
        assert len(guard._traced()) == 5
        assert guard.watched_layers == {"neck"}
        net(batch)
    assert not guard._traced()


@OF_BOTH
def test_a_change_before_a_step_raised_is_told_beside_its_exception(
    net: Any, invariant: Any, findings: list[Finding]
) -> None:
    def step() -> None:
        net.neck.running_mean.add_(1)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught, invariant(net, "neck"):
        step()
    assert "neck.running_mean" in "".join(caught.value.__notes__)
    assert [finding.carrier for finding in findings] == [caught.value]
    findings.clear()
