"""What an update does not reach is told to be left behind, and how it was missed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import Guard, in_sync
from pytest_bninvariants.invariants.in_sync.guard import sync_guard
from tests.invariants.in_sync.updates import ema_update, failure_text, hard_update, train


class Critic(nn.Module):
    """An extractor with a BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.extractor(x))


@pytest.fixture
def critic() -> Critic:
    torch.manual_seed(0)
    return Critic()


def advanced(model: nn.Module) -> nn.Module:
    """Return an average of a model, after a right step."""
    average = copy.deepcopy(model)
    train(model)
    ema_update(average, model, 0.9)
    return average


def told(guard: Guard, *events: Callable[[], object]) -> str:
    def step() -> None:
        with guard:
            for event in events:
                event()

    return failure_text(step)


def test_a_part_that_the_update_does_not_reach(critic: Critic) -> None:
    average = advanced(critic)
    said = told(
        in_sync(critic, average, decay=0.9),
        lambda: train(critic),
        lambda: ema_update(average.head, critic.head, 0.9),  # type: ignore[arg-type]
    )
    assert "2 of 3 layers not averaged with decay 0.9: extractor.0, extractor.1 (left-b" in said
    assert "extractor.0 and extractor.1 in the second did not move, unlike the rest" in said
    assert "zip(average.parameters(), model.parameters()) and zip(average.buffers()" in said
    assert "loop over parameters() leaves behind" not in said


def test_a_single_tensor_that_the_update_leaves_out(critic: Critic) -> None:
    average = advanced(critic)

    def update() -> None:
        bias = average.head.bias.clone()  # type: ignore[union-attr, operator]
        ema_update(average, critic, 0.9)
        average.head.bias.data = bias  # type: ignore[union-attr]

    said = told(in_sync(critic, average, decay=0.9), lambda: train(critic), update)
    assert "head.bias in the second did not move, unlike the rest: the update does not" in said


def test_statistics_without_parameters_of_their_own_are_left_behind_as_buffers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 1))
    average = advanced(model)
    said = told(
        in_sync(model, average, decay=0.9),
        lambda: train(model),
        lambda: ema_update(average, model, 0.9, buffers=False),
    )
    assert "a loop over parameters() leaves behind" in said


def by_name(average: nn.Module, model: nn.Module) -> None:
    theirs = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, mine in [*average.named_parameters(), *average.named_buffers()]:
            if name in theirs and mine.is_floating_point():
                mine.lerp_(theirs[name], 0.1)


@pytest.mark.parametrize("wraps_model", [True, False])
def test_names_that_a_wrapper_changes_are_not_found(critic: Critic, wraps_model: bool) -> None:
    inner = advanced(critic)
    model: nn.Module = torch.compile(critic, backend="eager") if wraps_model else critic
    average: nn.Module = inner if wraps_model else nn.DataParallel(inner)
    said = told(
        in_sync(model, average, decay=0.9, buffers="averaged"),
        lambda: train(critic),
        lambda: by_name(average, model),
    )
    wrapper = "_orig_mod." if wraps_model else "module."
    assert "no update ran, or it looked for names and found none" in said
    assert f"differ by the wrapper's '{wrapper}'" in said
    assert "after each step of the optimizer; if that runs, give the update the module" in said
    assert f"give the update the module inside the wrapper, its .{wrapper[:-1]}" in said


def test_a_wrapped_part_whose_names_are_not_found(critic: Critic) -> None:
    average = advanced(critic)
    critic.extractor = torch.compile(critic.extractor, backend="eager")  # type: ignore[assignment]
    said = told(
        in_sync(critic, average, decay=0.9, buffers="averaged"),
        lambda: train(critic),
        lambda: by_name(average, critic),
    )
    assert "the update does not reach them, as where it looks for names" in said
    assert "'_orig_mod.'" in said


def test_an_update_that_reads_the_average_itself_was_written_but_kept_its_values(
    critic: Critic,
) -> None:
    average = advanced(critic)

    def update() -> None:
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), average.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)

    said = told(in_sync(critic, average, decay=0.9), lambda: train(critic), update)
    assert "it was written to, but kept its values, as by an update that reads the second" in said
    assert "no update of it ran" not in said


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_target_that_is_loaded_from_itself(critic: Critic, decay: float | None) -> None:
    target = copy.deepcopy(critic).requires_grad_(False)
    said = told(
        sync_guard(critic, target, parameters=True, decay=decay),
        lambda: train(critic),
        lambda: target.load_state_dict(target.state_dict()),
    )
    assert "left-behind: the second was loaded from itself" in said
    assert "loaded by Critic.load_state_dict() at" in said
    assert "fix load the other model's state: copy.load_state_dict(model.state_dict())" in said


def test_a_target_that_is_loaded_from_the_model_holds(critic: Critic) -> None:
    target = copy.deepcopy(critic).requires_grad_(False)
    with sync_guard(critic, target, parameters=True) as guard:
        train(critic)
        target.load_state_dict(target.state_dict())
        hard_update(target, critic, buffers=True)
    assert guard.verdict is not None
    assert guard.verdict.holds


def test_a_target_that_moved_after_it_was_loaded_from_itself_differs_by_that(
    critic: Critic,
) -> None:
    target = copy.deepcopy(critic)
    said = told(
        sync_guard(critic, target, parameters=True),
        lambda: target.load_state_dict(target.state_dict()),
        lambda: train(target),
    )
    assert "loaded from itself" not in said


@pytest.mark.parametrize("trained", [0, 2])
def test_arguments_the_wrong_way_round(critic: Critic, trained: int) -> None:
    average = copy.deepcopy(critic)
    for _ in range(trained):
        train(critic)
        ema_update(average, critic, 0.9)
    said = told(
        in_sync(average, critic, decay=0.9),
        lambda: train(critic),
        lambda: ema_update(average, critic, 0.9),
    )
    assert said.partition(" in_sync")[0].endswith("(swapped)")
    assert "the first is the average of the second, and not the other way round" in said
    assert "in_sync(model, average, decay=0.9)" in said


def test_a_model_that_is_trained_and_never_averaged_is_not_swapped(critic: Critic) -> None:
    average = advanced(critic)
    said = told(in_sync(average, critic, decay=0.9), lambda: train(critic))
    assert "swapped" not in said
