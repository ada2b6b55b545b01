"""An average that took the model's values from before the optimizer's step is told so."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pytest_bninvariants import in_sync
from tests.invariants.in_sync.updates import ema_update, failure_text

Update = Callable[[nn.Module, nn.Module], None]


def lerp(average: nn.Module, model: nn.Module) -> None:
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 0.1)
        copy_buffers(average, model)


def copy_buffers(average: nn.Module, model: nn.Module) -> None:
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


def lerp_data(average: nn.Module, model: nn.Module) -> None:
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.data.copy_(theirs.data)


def rebind(average: nn.Module, model: nn.Module) -> None:
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.data = 0.9 * mine.data + 0.1 * theirs.data
    copy_buffers(average, model)


def foreach(average: nn.Module, model: nn.Module) -> None:
    with torch.no_grad():
        torch._foreach_lerp_([*average.parameters()], [*model.parameters()], 0.1)
    copy_buffers(average, model)


def multiply_and_add(average: nn.Module, model: nn.Module) -> None:
    ema_update(average, model, 0.9)


UPDATES = [lerp, lerp_data, rebind, foreach, multiply_and_add]


class Pair:
    """A model, its average and its optimizer, some right steps after the start."""

    def __init__(self, model: nn.Module, steps: int = 3, *, adam: bool = False) -> None:
        self.model, self.average = model, copy.deepcopy(model).requires_grad_(False).eval()
        self.optimizer = (
            torch.optim.Adam(model.parameters(), lr=0.05)
            if adam
            else torch.optim.SGD(model.parameters(), lr=0.1)
        )
        for _ in range(steps):
            self.backward()
            self.optimizer.step()
            lerp(self.average, model)

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(8, 4) + 3).square().mean().backward()

    def told(self, *events: Callable[[], object], decay: float = 0.9) -> str:
        """Return what the guard says of a step of these events."""

        def step() -> None:
            with in_sync(self.model, self.average, decay=decay):
                for event in events:
                    event()

        return failure_text(step)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("adam", [False, True])
def test_an_update_between_backward_and_step(
    model: nn.Sequential, update: Update, adam: bool
) -> None:
    pair = Pair(model, adam=adam)
    told = pair.told(pair.backward, lambda: update(pair.average, model), pair.optimizer.step)
    assert told.startswith("3 of 3 layers not averaged with decay 0.9: 0, 1 and 1 more (updated-e")
    assert "the second took the values that the first had before the optimizer's step" in told
    assert "fix update the second after the optimizer's step, not before it" in told


@pytest.mark.parametrize("update", UPDATES)
def test_an_update_before_the_forward_is_early_for_the_buffers_as_well(
    model: nn.Sequential, update: Update
) -> None:
    pair = Pair(model)
    told = pair.told(lambda: update(pair.average, model), pair.backward, pair.optimizer.step)
    assert "(updated-early)" in told.splitlines()[0]
    assert "left-behind" not in told


@pytest.mark.parametrize("update", [lerp, foreach, multiply_and_add])
def test_an_early_update_of_what_equals_the_model_moves_nothing_and_is_told(
    model: nn.Sequential, update: Update
) -> None:
    pair = Pair(model, steps=0)
    told = pair.told(pair.backward, lambda: update(pair.average, model), pair.optimizer.step)
    assert "(updated-early)" in told
    assert "no update of it ran" not in told


def test_an_unseen_early_update_of_what_equals_the_model_is_not_denied(
    model: nn.Sequential,
) -> None:
    pair = Pair(model, steps=0)

    def update() -> None:
        for mine, theirs in zip(pair.average.parameters(), model.parameters(), strict=True):
            mine.data.lerp_(theirs.data, 0.1)

    told = pair.told(
        pair.backward, update, lambda: copy_buffers(pair.average, model), pair.optimizer.step
    )
    assert "it ran before the optimizer's step, when both models were equal" in told


@pytest.mark.parametrize("micro", [2, 4, 8])
@pytest.mark.parametrize("update", UPDATES)
def test_an_update_in_each_micro_batch_says_how_many_came_first(
    model: nn.Sequential, update: Update, micro: int
) -> None:
    pair = Pair(model)
    events: list[Callable[[], object]] = []
    for number in range(micro):
        events += [pair.backward, *([pair.optimizer.step] if number == micro - 1 else [])]
        events.append(lambda: update(pair.average, model))
    told = pair.told(*events)
    assert "(updated-early)" in told
    assert f"was updated {micro} times: {micro - 1} before the optimizer's step" in told
    assert "and 1 after it" in told


def test_an_early_update_with_another_decay_is_early(model: nn.Sequential) -> None:
    pair = Pair(model)
    told = pair.told(
        pair.backward, lambda: ema_update(pair.average, model, 0.75), pair.optimizer.step
    )
    assert "(updated-early)" in told


def test_torchs_average_whose_first_update_is_early(model: nn.Sequential) -> None:
    pair = Pair(model, steps=0)
    pair.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    pair.backward()
    pair.optimizer.step()
    told = pair.told(
        pair.backward, lambda: pair.average.update_parameters(model), pair.optimizer.step
    )
    assert "(updated-early)" in told.partition(" in_sync")[0]


def test_an_early_copy_of_a_target_network(model: nn.Sequential) -> None:
    pair = Pair(model)
    told = pair.told(
        pair.backward,
        lambda: pair.average.load_state_dict(model.state_dict()),
        pair.optimizer.step,
        decay=0.0,
    )
    assert "(updated-early)" in told


def test_an_update_from_a_stale_copy_is_not_told_to_come_later(model: nn.Sequential) -> None:
    pair = Pair(model)
    stale = copy.deepcopy(model)
    told = pair.told(pair.backward, pair.optimizer.step, lambda: lerp(pair.average, stale))
    assert "though its update ran after that: the update reads a copy of the first" in told
    assert "after the optimizer's step, not before" not in told


def test_a_model_without_an_optimizer_is_told_by_its_values(model: nn.Sequential) -> None:
    pair = Pair(model)

    def descend() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad

    told = pair.told(pair.backward, lambda: lerp(pair.average, model), descend)
    assert "(updated-early)" in told


def test_an_update_in_its_place_holds(model: nn.Sequential) -> None:
    pair = Pair(model)
    with in_sync(model, pair.average, decay=0.9) as guard:
        pair.backward()
        pair.optimizer.step()
        lerp(pair.average, model)
    assert guard.verdict.holds


def test_two_updates_after_the_step_are_none_too_early(model: nn.Sequential) -> None:
    pair = Pair(model)
    update = lambda: lerp(pair.average, model)  # noqa: E731
    told = pair.told(pair.backward, pair.optimizer.step, update, update)
    assert "(other-decay)" in told
    assert "as by 2 updates in one step" in told


def test_noise_is_no_early_update(model: nn.Sequential) -> None:
    pair = Pair(model)

    def noise() -> None:
        for mine in pair.average.parameters():
            mine.data += torch.randn_like(mine) * 1e-3

    told = pair.told(pair.backward, noise, pair.optimizer.step)
    assert "updated-early" not in told
