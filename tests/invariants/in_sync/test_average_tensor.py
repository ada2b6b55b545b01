"""How far an average may be from what its decay says: an error just within, and one just beyond."""

from __future__ import annotations

import pytest
import torch

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from tests.invariants.in_sync.single_values import averaged

U = UNIT[torch.float32]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("units", "holds"), [(0, True), (8, True), (12, False)])
def test_an_average_may_be_four_roundings_off(sign: int, units: int, holds: bool) -> None:
    # the sizes that round add up to 2.5: half of 1, half of 2, and their difference
    assert averaged(1.0, 1.5 + sign * units * U, 2.0, 2.0, 0.5).holds == holds


@pytest.mark.parametrize(
    ("now", "holds"), [(1, True), (2, True), (5, True), (0, False), (3, False), (4, False)]
)
def test_an_average_of_integers_is_a_neighbour_or_a_copy(now: int, holds: bool) -> None:
    assert averaged(0, now, 5, 5, 0.75, torch.int64).holds == holds


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize(("share", "fits"), [(0.0, True), (0.9, True), (1.1, False)])
def test_a_mixture_may_be_four_roundings_off_for_each_update(
    updates: int, share: float, fits: bool
) -> None:
    # a quarter of 1, a quarter of 2, half of 4, and the distances of 2 and 4 from 1
    size, expected = 0.25 + 0.5 + 2 + 1 + 3, 2.75
    off = 4 * updates * U * size * share
    average = averaged(1.0, expected + off, 2.0, 4.0, 0.25)
    assert average.is_mixture(0.25, 0.25, updates) == fits


def test_an_average_of_integers_is_no_mixture() -> None:
    assert not averaged(0, 3, 4, 4, 0.5, torch.int64).is_mixture(0.25, 0.75, 1)


def test_what_must_be_copied_equals_the_models_value_in_its_own_dtype() -> None:
    third = 1 / 3
    assert averaged(0, third, 0, third, None, torch.float16).holds
    assert averaged(0, third, 0, third, None).holds
    assert not averaged(0, third + 1e-6, 0, third, None).holds


@pytest.mark.parametrize(
    ("was", "now", "left_behind"),
    [(1.0, 1.0, True), (1.0, 1.25, False), (1.0, 1.5, False), (2.0, 2.0, False)],
    ids=["stayed", "moved elsewhere", "moved", "had nowhere to go"],
)
def test_what_stayed_and_should_have_moved_is_left_behind(
    was: float, now: float, left_behind: bool
) -> None:
    assert averaged(was, now, 2.0, 2.0, 0.5).is_left_behind == left_behind


@pytest.mark.parametrize(
    ("was", "model", "decay", "moves"),
    [
        (1.0, 2.0, 0.5, True),
        (1.0, 2.0, 1.0, False),
        (1.0, 1.0, 0.5, False),
        (1.0, 2.0, None, False),
    ],
)
def test_an_update_moves_what_is_averaged_and_differs(
    was: float, model: float, decay: float | None, moves: bool
) -> None:
    assert averaged(was, was, model, model, decay).is_to_move == moves


@pytest.mark.parametrize(("model", "shows"), [(2.0, True), (1.0, False), (1 + 4 * U, False)])
def test_an_update_shows_if_staying_would_be_wrong(model: float, shows: bool) -> None:
    assert averaged(1.0, 1.5, model, model, 0.5).shows_update == shows


def test_copies_are_told_by_when_they_were_made() -> None:
    early, late, neither = (averaged(1.0, now, 2.0, 3.0, 0.5) for now in (2.0, 3.0, 2.5))
    assert [each.is_early_copy for each in (early, late, neither)] == [True, False, False]
    assert [each.is_copy for each in (early, late, neither)] == [False, True, False]
    assert not averaged(1.0, 2.0, 2.0, 2.0, 0.5).is_early_copy
    assert averaged(2.0, 1.0, 2.0, 3.0, 0.5).was_copy
    assert not averaged(3.0, 1.0, 2.0, 3.0, 0.5).was_copy
    assert averaged(1.0, 1.0, 2.0, 3.0, 0.5).model_moved
    assert not averaged(1.0, 2.0, 3.0, 3.0, 0.5).model_moved


@pytest.mark.parametrize(("now", "swapped"), [(1.75, True), (1.25, False), (1.5, False)])
def test_weights_the_wrong_way_round_are_recognised(now: float, swapped: bool) -> None:
    assert averaged(1.0, now, 2.0, 2.0, 0.75).is_swapped == swapped


def test_an_error_counts_in_bounds_and_a_value_that_is_right_counts_nothing() -> None:
    average = averaged(1.0, 2.0, 2.0, 2.0, 0.5)
    assert average.excess(average.expected).tolist() == [0.0]
    assert average.excess(average.expected + 3 * average.bound).tolist() == pytest.approx([3.0])
    assert average.excess(average.expected - 3 * average.bound).tolist() == pytest.approx([3.0])
