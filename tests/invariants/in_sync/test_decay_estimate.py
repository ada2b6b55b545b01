"""The decay that an update used is read off the values that it left, in as few digits as fit."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.invariants.in_sync.decay_estimate import estimate_decay
from pytest_bninvariants.invariants.in_sync.early_update import EarlyUpdate, find_early_update
from pytest_bninvariants.selection.walk import Kind
from tests.invariants.in_sync.single_values import averaged


def moved(used: float, was: float = 1.0, kind: Kind = "parameter") -> AverageTensor:
    """Return an average that moved with this decay, where 0.5 was expected."""
    return averaged(was, used * was + (1 - used) * 3, 3.0, 3.0, 0.5, kind=kind)


@pytest.mark.parametrize("used", [0.0, 0.125, 0.9, 0.9999, 0.999999])
def test_the_decay_that_fits_all_is_told(used: float) -> None:
    assert estimate_decay([moved(used), moved(used, was=-2.0)]) == used


def test_two_decays_are_none() -> None:
    assert estimate_decay([moved(0.9), moved(0.8, was=-2.0)]) is None


@pytest.mark.parametrize("used", [-0.5, 1.5])
def test_a_weight_that_is_no_decay_is_none(used: float) -> None:
    assert estimate_decay([moved(used)]) is None


def test_parameters_are_asked_and_buffers_only_if_there_are_no_others() -> None:
    assert estimate_decay([moved(0.9), moved(0.8, kind="buffer")]) == 0.9
    assert estimate_decay([moved(0.8, kind="buffer")]) == 0.8


def test_what_was_left_behind_says_nothing_of_the_decay() -> None:
    left = averaged(1.0, 1.0, 3.0, 3.0, 0.5, kind="parameter")
    assert left.is_left_behind
    assert estimate_decay([left, moved(0.9)]) == 0.9
    assert estimate_decay([left]) is None


def test_copies_and_integers_say_nothing_of_the_decay() -> None:
    copied = averaged(1.0, 3.0, 3.0, 3.0, None, kind="parameter")
    counted = averaged(1, 3, 3, 3, 0.5, torch.int64, kind="parameter")
    assert estimate_decay([copied, counted]) is None
    assert estimate_decay([copied, counted, moved(0.9)]) == 0.9


@pytest.mark.parametrize("model", [1.0, math.inf, math.nan])
def test_values_that_do_not_differ_or_are_not_finite_say_nothing(model: float) -> None:
    assert estimate_decay([averaged(1.0, 1.0, model, model, 0.5, kind="parameter")]) is None


def early(
    before: int, after: int, decay: float = 0.5, noise: float = 0.0, kind: Kind = "parameter"
) -> list[AverageTensor]:
    """Return averages that were updated so often before a step, and so often after it."""
    made = []
    for was, first, last in ((1.0, 2.0, 4.0), (3.0, -1.0, 0.5)):
        now = was
        for model in (first,) * before + (last,) * after:
            now = decay * now + (1 - decay) * model
        made.append(averaged(was, now + noise, first, last, 0.5, kind=kind))
    return made


@pytest.mark.parametrize(("before", "after"), [(1, 0), (1, 1), (2, 1), (1, 2), (3, 2)])
def test_the_updates_before_and_after_a_step_are_counted(before: int, after: int) -> None:
    found = find_early_update(early(before, after), 0.5)
    assert found == EarlyUpdate(decay=0.5, before=before, after=after)
    assert all(found.explains(each) for each in early(before, after))
    assert not any(found.explains(each) for each in early(before, after, noise=0.01))


@pytest.mark.parametrize(("updates", "decay", "told"), [(1, 0.75, 0.75), (2, 0.5, 0.25)])
def test_an_early_update_with_another_decay_is_told(
    updates: int, decay: float, told: float
) -> None:
    found = find_early_update(early(updates, 0, decay), 0.5)
    assert found == EarlyUpdate(decay=told, before=1, after=0)


@pytest.mark.parametrize("averages", [early(0, 1), early(0, 2), early(1, 0, noise=0.01), []])
def test_what_came_after_the_step_or_is_noise_is_no_early_update(
    averages: list[AverageTensor],
) -> None:
    assert find_early_update(averages, 0.5) is None


def test_parameters_decide_and_buffers_where_there_are_no_others() -> None:
    buffers = early(1, 0, 0.75, kind="buffer")
    assert find_early_update([*early(1, 0), *buffers], 0.5) == EarlyUpdate(
        decay=0.5, before=1, after=0
    )
    assert find_early_update(buffers, 0.5) == EarlyUpdate(decay=0.75, before=1, after=0)


def test_a_model_that_did_not_move_was_not_averaged_early() -> None:
    still = averaged(1.0, 1.5, 2.0, 2.0, 0.5, kind="parameter")
    assert find_early_update([still], 0.5) is None


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_decay_that_leaves_no_trace_counts_no_updates(decay: float) -> None:
    assert find_early_update(early(1, 1), decay) is None


def test_one_value_alone_cannot_tell_two_weights() -> None:
    assert find_early_update(early(1, 1)[:1], 0.5) is None
