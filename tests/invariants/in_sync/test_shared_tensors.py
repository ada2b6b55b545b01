"""Tensors that both models share are refused where training would move them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import GateError, in_sync
from pytest_bninvariants.invariants.in_sync.guard import sync_guard
from tests.invariants.in_sync.updates import ema_step, ema_update, failure_text, train


def sharing(model: nn.Sequential, *names: str) -> nn.Sequential:
    """Return a copy that shares some tensors with the model, as load_state_dict(assign=True)."""
    other = copy.deepcopy(model)
    shared = {name: model.state_dict()[name] for name in names}
    other.load_state_dict(shared, assign=True, strict=False)
    return other


STATISTICS = ("1.num_batches_tracked", "1.running_mean", "1.running_var")


def test_statistics_that_both_share_are_no_copies(model: nn.Sequential) -> None:
    other = sharing(model, *STATISTICS[:2])
    with pytest.raises(GateError, match=r"very same tensors '1\.num_bat.*', '1\.running_mean', so"):
        in_sync(model, other)
    assert in_sync(model, other, exclude=STATISTICS[:2]).layers == 1


def test_a_trainable_parameter_that_both_share_is_no_copy(model: nn.Sequential) -> None:
    other = sharing(model, "2.bias")
    with pytest.raises(GateError, match=r"the very same tensor '2\.bias', so"):
        in_sync(model, other, parameters=True)
    model[2].requires_grad_(False)
    assert in_sync(model, other, parameters=True).layers == 3


def test_a_constant_that_both_share_is_nothing_to_tell(model: nn.Sequential) -> None:
    constant, other = torch.ones(3), copy.deepcopy(model)
    model.register_buffer("mean", constant)
    other.register_buffer("mean", constant)
    assert in_sync(model, other, parameters=True).layers == 4
    with in_sync(model, other, decay=0.9) as guard:
        ema_step(other, model, 0.9)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 4)


@pytest.mark.parametrize("buffers", ["copied", "averaged"])
def test_an_average_that_shares_its_statistics_with_the_model_is_refused(
    model: nn.Sequential, buffers: Any
) -> None:
    average = sharing(model, *STATISTICS)
    with (
        pytest.raises(GateError, match=r"very same tensors '1\.running_mean', .*_tracked', so"),
        in_sync(model, average, decay=0.9, buffers=buffers),
    ):
        ema_step(average, model, 0.9, buffers=False)


def test_an_average_may_share_what_does_not_move(model: nn.Sequential) -> None:
    model[0].requires_grad_(False)
    average = sharing(model, "0.weight", "0.bias")
    with in_sync(model, average, decay=0.9) as guard:
        train(model)
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
            for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 3)


def test_an_average_that_comes_to_share_a_parameter_in_the_step_breaks_it(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            train(model)
            ema_update(average, model, 0.9)
            average[2].load_state_dict(model[2].state_dict(), assign=True)

    told = failure_text(step)
    assert told.startswith("1 of 3 layers not averaged with decay 0.9: 2 (shared-memory)")
    assert "2.bias since the step the same tensor as in the first" in told
    assert "mine.copy_(theirs)" in told
    assert "exclude=" not in told


@pytest.mark.parametrize("names", [("1.running_mean",), ("2.bias",)])
def test_data_that_is_assigned_makes_both_hold_it(
    model: nn.Sequential, names: tuple[str, ...]
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            train(model)
            ema_update(average, model, 0.9)
            mine, theirs = average.state_dict(keep_vars=True), model.state_dict()
            for name in names:
                mine[name].data = theirs[name].data

    told = failure_text(step)
    assert "shared-memory" in told
    assert f"the step made the second and the first share {names[0]}, as" in told


def test_a_step_after_which_both_hold_all_tensors_breaks_it(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            train(model)
            average.load_state_dict(model.state_dict(), assign=True)

    assert failure_text(step).startswith(
        "3 of 3 layers not averaged with decay 0.9: 0, 1 and 1 more (shared-memory)"
    )


def test_a_marked_step_that_makes_a_copy_share_breaks_it(model: nn.Sequential) -> None:
    target = copy.deepcopy(model)
    guard = sync_guard(model, target)

    def step() -> None:
        with guard:
            train(model)
            target.load_state_dict(model.state_dict(), assign=True)

    told = failure_text(step)
    assert told.startswith("1 of 1 layer is not a copy: 1 (shared-memory)")
    assert "1.running_mean since the step the same tensor as in the second" in told
    assert "the step made the second and the first share 1.running_mean" in told


def test_a_constant_that_a_step_makes_both_hold_is_nothing_to_tell(model: nn.Sequential) -> None:
    other = copy.deepcopy(model)
    for each in (model, other):
        each.register_buffer("mean", torch.ones(3))
    with sync_guard(model, other) as guard:
        other.mean.data = model.mean.data
    assert guard.verdict is not None
    assert guard.verdict.holds


def test_tensors_that_are_tied_within_each_model_are_copies(model: nn.Sequential) -> None:
    model.append(model[2])
    model.append(nn.Linear(1, 1))
    model.append(model[1])
    average = copy.deepcopy(model)
    assert in_sync(model, average, parameters=True).layers == 6


def test_all_that_both_models_have_may_be_shared_though_one_has_more(model: nn.Sequential) -> None:
    more = nn.Sequential(*model, nn.BatchNorm1d(1))
    for one, other in ((model, more), (more, model)):
        with pytest.raises(GateError, match="both models hold the very same tensors, so there is"):
            in_sync(one, other)
