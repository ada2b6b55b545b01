"""Moves along a gradient, and values that have nothing of those before: from both sides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.invariants.trains.value_sample import (
    are_parallel,
    is_unlike,
    same_sample,
    samples_of,
)


def of(*parts: tuple[float, int]) -> Tensor:
    """Return values, each so many times."""
    return torch.tensor([value for value, count in parts for _ in range(count)]).double()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("size", "parallel"), [(9.0, True), (8.0, False)])
def test_a_move_is_parallel_to_a_gradient_from_a_cosine_of_nine_tenths(
    sign: int, size: float, parallel: bool
) -> None:
    gradient, move = of((size, 1), (1, 8)), of((size, 1), (1, 4), (-1, 4))
    cosine = float(move @ gradient / move.norm() / gradient.norm())
    assert (cosine > 0.9) == parallel
    assert are_parallel(sign * move, gradient) == parallel


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("against", "parallel"), [(1, True), (3, False)])
def test_a_move_is_parallel_to_the_signs_of_a_gradient_if_nearly_all_agree(
    sign: int, against: int, parallel: bool
) -> None:
    gradient, move = of((100, 1), (1, 39)), of((-1, against), (1, 40 - against))
    assert are_parallel(sign * move, gradient) == parallel


def test_no_move_another_shape_and_infinite_values_are_not_parallel() -> None:
    gradient = of((1, 4))
    assert are_parallel(gradient, gradient)
    for move in (0 * gradient, of((1, 3)), of((float("inf"), 4)), of((float("nan"), 4))):
        assert not are_parallel(move, gradient)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("share", "unlike"), [(0.25, True), (0.35, False)])
def test_values_have_something_of_those_before_from_a_correlation_of_three_tenths(
    sign: int, share: float, unlike: bool
) -> None:
    before, other = of((1, 1), (-1, 1)).repeat(16), of((1, 2), (-1, 2)).repeat(8)
    now = sign * share * before + (1 - share**2) ** 0.5 * other
    assert is_unlike(now, before) == unlike
    assert is_unlike(now + 5, before - 7) == unlike
    assert not is_unlike(now[:31], before[:31])


def test_zeros_are_unlike_all_but_zeros_and_one_value_that_stayed_is_enough() -> None:
    before, other = of((1, 1), (-1, 1)).repeat(16), of((2, 2), (-2, 2)).repeat(8)
    assert is_unlike(0 * before, before)
    assert not is_unlike(0 * before, 0 * before)
    assert is_unlike(other, before)
    other[3] = before[3]
    assert not is_unlike(other, before)


def test_each_tensor_is_sampled_whatever_the_others_are() -> None:
    large = torch.arange(5000.0)
    tensors = [None, torch.tensor([1, 2]), large, torch.tensor([[1 + 2j]]), nn.Parameter(large[:3])]
    absent, integers, many, pairs, few = samples_of(tensors)
    assert absent is None
    assert integers is not None
    assert integers.tolist() == [1, 2]
    assert many is not None
    assert many.tolist() == large[::19].tolist()
    assert pairs is not None
    assert pairs.tolist() == [1, 2]
    assert few is not None
    assert few.tolist() == [0, 1, 2]
    (same,) = samples_of([large])
    assert same_sample(same, many)
    assert not same_sample(few, None)
    assert same_sample(None, None)
