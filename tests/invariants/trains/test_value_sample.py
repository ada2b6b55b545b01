"""A few values tell whether a tensor moved along its gradient, and whether it was made anew."""

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


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("move", "gradient", "parallel"),
    [
        (values(-1, -2), values(2, 4), True),
        (values(1, 0), values(0, 1), False),  # no value that both have
        (values(0, 0), values(1, 1), False),
        (values(1e308, 1e308), values(1e308, 1e308), False),
        (values(1, 1), values(1, 1, 1), False),
        (values(1, 1, 1, 1), values(100, 1, 1, 1), True),  # by the signs, as Adam
        (values(1, 1, 1, -1), values(100, 1, 1, 1), False),
        (values(19, 3, 3, 1, 4, 2), values(19, 3, 3, 1, -4, -2), True),  # a cosine of just 0.9
        (values(19, 3, 3, 1, 4, 3), values(19, 3, 3, 1, -4, -3), False),
    ],
)
def test_a_move_is_parallel_as_a_whole_or_by_its_signs(
    move: Tensor, gradient: Tensor, parallel: bool
) -> None:
    assert are_parallel(move, gradient) == parallel


def test_values_are_unlike_if_nothing_of_the_old_is_left() -> None:
    steps = torch.arange(64.0).double()
    before, other = steps.cos(), steps.sin()
    assert is_unlike(other, before)
    assert is_unlike(other[:32], before[:32])
    assert is_unlike(torch.zeros(64).double(), before)
    assert not is_unlike(torch.zeros(64).double(), torch.zeros(64).double())
    assert not is_unlike(other[:31], before[:31])  # too few to tell
    assert not is_unlike(2 * before, before)
    assert not is_unlike(torch.where(before > 0.5, before, other), before)
    assert not is_unlike(torch.ones(64).double(), before)


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
