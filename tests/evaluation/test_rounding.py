"""How far rounding goes is measured, and what a user allows is checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pytest_bninvariants import GateError
from pytest_bninvariants.evaluation.rounding import (
    MARGIN,
    Rounding,
    Tolerance,
    distances,
    unit_of,
)

INF, NAN = math.inf, math.nan


def test_the_margin_is_the_ratio_of_two_orders_of_adding() -> None:
    assert pytest.approx(512 / 18) == MARGIN


def test_a_bound_is_that_of_its_precision() -> None:
    narrow = torch.tensor([1.0, 2.0 + 2**-20])
    rounding = Rounding.measure(narrow, torch.tensor([1.0, 2.0], dtype=torch.float64), 2**-24)
    assert (rounding.error, rounding.size) == (2**-20, 2.0)
    assert rounding.bound == MARGIN * (2**-20 + 2**-23)
    assert rounding.wide_bound == rounding.bound * 2**-29


def test_equal_infinities_and_nan_are_not_apart() -> None:
    apart = distances(torch.tensor([INF, NAN, INF, NAN, 1]), torch.tensor([INF, NAN, -INF, 1, 1j]))
    assert apart.tolist()[:4] == [0, 0, INF, INF]
    assert apart[4] == pytest.approx(math.sqrt(2))


def test_the_unit_is_that_of_the_narrowest_float() -> None:
    assert unit_of([torch.ones(1), torch.ones(1, dtype=torch.float64)]) == 2**-24
    assert unit_of([torch.ones(1), torch.ones(1).bfloat16()]) == 2**-8
    assert unit_of([torch.ones(1, dtype=torch.int64)]) == 2**-24


@pytest.mark.parametrize("value", [-1, NAN, INF, True, "1", None])
def test_a_tolerance_is_a_number_from_0(value: Any) -> None:
    with pytest.raises(GateError, match="atol= takes a number >= 0; got "):
        Tolerance(atol=value)


def test_a_tolerance_names_the_options_that_were_given() -> None:
    assert (Tolerance().exact, Tolerance().options) == (True, {})
    assert Tolerance(rtol=0.5).options == {"rtol": 0.5}
