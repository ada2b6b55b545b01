"""One model averages the other, with the decay that the guard is given."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pytest_bninvariants import GateError, Verdict, in_sync
from tests.invariants.in_sync.updates import (
    average_all,
    ema_step,
    failure_text,
    hard_update,
    train,
)


def test_an_average_of_parameters_alone_leaves_the_statistics_behind(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step(*, buffers: bool) -> Verdict:
        with in_sync(model, average, decay=0.9) as guard:
            ema_step(average, model, 0.9, buffers=buffers)
        return guard.verdict

    told = failure_text(lambda: step(buffers=False))
    assert told.startswith("1 of 3 layers not averaged with decay 0.9: 1 (left-behind)")
    assert "1.num_batches_tracked 0, expected 1: not updated" in told
    assert "a loop over parameters() leaves behind" in told
    assert step(buffers=True).layers == 3


def test_an_average_with_the_weights_the_wrong_way_round(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)
    train(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            ema_step(average, model, 0.1)

    assert "as if decay weighed the new value" in failure_text(step)


@pytest.mark.parametrize(
    ("used", "why"),
    [
        (0.9, "was averaged with decay 0.9 fix"),
        (0.9801, "was averaged with decay 0.9801, as by 2 updates in one step fix"),
        (0.01, "was averaged with decay 0.01: the weights are the wrong way round fix"),
        (0.0, "was averaged with decay 0: it is a copy of the model fix"),
    ],
)
def test_an_average_with_another_decay_is_told_which(
    model: nn.Sequential, used: float, why: str
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99):
            ema_step(average, model, used)

    told = failure_text(step)
    assert told.startswith(
        "3 of 3 layers not averaged with decay 0.99: 0, 1 and 1 more (other-decay)"
    )
    assert f"why other-decay: the second {why}" in told
    assert ("or pass decay=0.9 if that is meant" in told) == (used == 0.9)


def test_one_layer_that_is_off_is_no_other_decay(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99):
            ema_step(average, model, 0.99)
            average[2].bias.data += 1

    told = failure_text(step)
    assert told.startswith("1 of 3 layers not averaged with decay 0.99: 2 ")
    assert "why" not in told


def test_two_right_steps_in_one_guard_are_told_to_be_guarded_one_by_one(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model)
    ema_step(average, model, 0.99)

    def step() -> None:
        with in_sync(model, average, decay=0.99):
            ema_step(average, model, 0.99)
            ema_step(average, model, 0.99)

    told = failure_text(step)
    assert "why several-steps: 2 optimizer steps ran inside the guard" in told
    assert "put a guard around each step and the update of the second" in told


def test_a_tensor_that_is_off_after_two_steps_and_one_update_is_not_told_as_of_several_steps(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99):
            train(model)
            ema_step(average, model, 0.99)
            average[2].bias.data += 1

    assert "why" not in failure_text(step)


@pytest.mark.parametrize("used", [0.99, 0.9])
def test_buffers_that_are_averaged_and_not_copied_are_told(
    model: nn.Sequential, used: float
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99):
            train(model)
            average_all(average, model, used)

    told = failure_text(step)
    assert "other-buffers: the buffers of 1 in the second are averaged, not copied" in told
    assert 'fix pass buffers="averaged" if that is meant' in told
    assert ("other-decay" in told) == (used == 0.9)


def test_buffers_that_were_copied_before_the_model_went_on_are_not_told_to_be_averaged(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99):
            ema_step(average, model, 0.99)
            model(torch.randn(4, 4))  # in training mode: its statistics move once more

    assert "other-buffers" not in failure_text(step)


def test_statistics_that_are_to_be_averaged_and_stayed_are_advised_to_be_averaged(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99, buffers="averaged"):
            ema_step(average, model, 0.99, buffers=False)

    told = failure_text(step)
    assert "left-behind: the running statistics of 1 in the second did not move" in told
    assert "fix average the buffers, too: for mine, theirs in zip(copy.buffers()" in told
    assert "mine.lerp_(theirs, 0.01) if mine.is_floating_point()" in told


def test_buffers_that_are_copied_and_not_averaged_are_told(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99, buffers="averaged"):
            ema_step(average, model, 0.99)

    told = failure_text(step)
    assert "other-buffers: the buffers of 1 in the second are copied, not averaged" in told
    assert 'fix pass buffers="copied" if that is meant' in told


def test_an_average_whose_own_forward_moved_its_statistics_is_told_so(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model)

    def step() -> Verdict:
        with in_sync(model, average, decay=0.99, buffers="averaged") as guard:
            train(model)
            average(torch.randn(8, 4) - 3)
            average_all(average, model, 0.99)
        return guard.verdict

    told = failure_text(step)
    assert told.startswith("1 of 3 layers not averaged with decay 0.99: 1 (training-mode)")
    assert "1 in the second is in training mode, so each forward of it moves" in told
    assert "fix put the average in eval: average.eval()" in told
    average.eval()
    assert step().layers == 3


def test_statistics_of_an_average_in_eval_that_something_else_moved_are_not_put_down_to_its_mode(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model).eval()

    def step() -> None:
        with in_sync(model, average, decay=0.99, buffers="averaged"):
            train(model)
            average_all(average, model, 0.99)
            average[1].running_mean += 1

    told = failure_text(step)
    assert told.startswith("1 of 3 layers not averaged with decay 0.99: 1 ")
    assert "training-mode" not in told


def test_an_average_in_float16_takes_copies_of_buffers_in_float16(model: nn.Sequential) -> None:
    average = copy.deepcopy(model).half()
    with in_sync(model, average, decay=0.5) as guard:
        ema_step(average, model, 0.5)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 3)


def test_an_average_in_float16_is_not_judged_by_its_buffers_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    nn.init.constant_(model[1].bias, 1.0)
    nn.init.constant_(model[0].bias, 1.0)
    average = copy.deepcopy(model).half()

    def step() -> None:
        with in_sync(model, average, decay=0.9999):
            train(model)
            for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)

    message = r"nothing moved far enough.*keep the average in torch\.float32, not torch\.float16$"
    with pytest.raises(GateError, match=message):
        step()


def test_the_buffers_tell_where_no_parameter_is_to_move(model: nn.Sequential) -> None:
    average = copy.deepcopy(model.requires_grad_(False))
    with in_sync(model, average, decay=0.9) as guard:
        model(torch.randn(8, 4))
        hard_update(average, model, buffers=True)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 3)


def test_an_average_that_is_not_updated_is_told_so(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            train(model)

    assert "no update of it ran in the step" in failure_text(step)


def test_a_copy_is_no_average(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            train(model)
            hard_update(average, model, buffers=True)

    told = failure_text(step)
    assert "a copy of the model's" in told
    assert told.startswith("3 of 3 layers not averaged with decay 0.9")


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_torchs_averaged_model_holds_from_its_first_update_on(
    model: nn.Sequential, decay: float, use_buffers: bool
) -> None:
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=use_buffers
    )
    train(model)
    for _ in range(3):
        buffers = "averaged" if use_buffers else "copied"
        with in_sync(model, average, decay=decay, buffers=buffers) as guard:
            train(model)
            average.update_parameters(model)
        assert (guard.verdict.holds, guard.verdict.layers) == (True, 3)


def test_buffers_that_are_averaged_are_no_copies(model: nn.Sequential) -> None:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9, buffers="copied"):
            train(model)
            average.update_parameters(model)

    assert failure_text(step).startswith("1 of 3 layers not averaged with decay 0.9: module.1")


@pytest.mark.parametrize("kind", ["ModelEmaV2", "ModelEmaV3"])
@pytest.mark.parametrize(
    ("dtype", "decay"),
    [(torch.float32, 0.5), (torch.float32, 0.9998), (torch.bfloat16, 0.5), (torch.bfloat16, 0.9)],
)
def test_timms_averages_hold(
    model: nn.Sequential, kind: str, dtype: torch.dtype, decay: float
) -> None:
    utils = pytest.importorskip("timm.utils")
    average = getattr(utils, kind)(model, decay=decay)
    average.module.to(dtype)
    for _ in range(2):
        with in_sync(model, average, decay=decay, buffers="averaged") as guard:
            train(model)
            average.update(model)
        assert (guard.verdict.holds, guard.verdict.layers) == (True, 3)


def test_an_average_in_bfloat16_that_cannot_move_so_little_is_not_taken_for_updated(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model).bfloat16()

    def step() -> None:
        with in_sync(model, average, decay=0.9998, buffers="averaged"):
            train(model)

    with pytest.raises(GateError, match="nothing moved far enough"):
        step()


def test_a_loop_of_lerps_holds(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)
    with in_sync(model, average, decay=0.99, buffers="averaged") as guard:
        train(model)
        average_all(average, model, 0.99)
    assert (guard.verdict.holds, guard.verdict.layers) == (True, 3)
