"""A layer's tensor is held against its true value, and two of its tensors against each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_bninvariants.batchnorm.cases import Batch, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue
from pytest_bninvariants.batchnorm.trials.comparison import ComparisonTally, TensorComparison
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.errors import LawBroken

MOST = torch.finfo(torch.float16).max
TALLY = ComparisonTally()


def is_wrong(got: float, value: float, bound: float) -> bool:
    expected = BoundedValue(
        torch.tensor([value], dtype=torch.float64), torch.tensor([bound], dtype=torch.float64)
    )
    comparison = TensorComparison.from_tensors(torch.tensor([got]).half(), expected, 0)
    return bool(comparison.wrong())


@pytest.mark.parametrize("bound", [0.25, 0.5])
def test_an_error_is_wrong_from_just_beyond_its_bound(bound: float) -> None:
    assert not is_wrong(1 + bound, 1.0, bound)
    assert is_wrong(1 + bound, 1.0, bound * 0.99)
    assert is_wrong(1 - bound, 1.0, bound * 0.99)
    assert not is_wrong(math.nan, 1.0, math.inf)
    assert is_wrong(math.nan, 1.0, bound)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinity_is_right_only_where_the_true_value_may_lie_past_the_largest_number(
    sign: int,
) -> None:
    assert not is_wrong(sign * math.inf, sign * (MOST - 8), 16)
    assert not is_wrong(sign * math.inf, sign * MOST * 2, 16)
    assert is_wrong(sign * math.inf, sign * (MOST - 32), 16)
    assert is_wrong(-sign * math.inf, sign * (MOST - 8), 16)
    assert is_wrong(sign * MOST, sign * MOST * 2, 16)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("torch.tensor([0.0, float('nan')])", "torch.tensor([-0.0, float('nan')])", True),
        ("torch.ones(2)", "torch.ones(2).double()", False),
        ("torch.ones(2)", "torch.ones(2, 1)", False),
        ("torch.ones(2)", "torch.tensor([1.0, float('nan')])", False),
        ("torch.ones(2)", "None", False),
    ],
)
def test_tensors_are_the_same_in_dtype_shape_and_values(one: str, other: str, same: bool) -> None:
    subject = LayerUnderTest.from_factory(nn.BatchNorm1d)
    trial = LawTrial("law", "It is so.", subject, Case(batches=(Batch(shape=(2, 3)),)), TALLY)
    if same:
        trial.check_same(one, other, "it changed")
        return
    with pytest.raises(LawBroken, match="it changed: "):
        trial.check_same(one, other, "it changed")
