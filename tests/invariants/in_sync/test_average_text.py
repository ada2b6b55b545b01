"""The row of a wrong average says which value, what it must be, and what it looks like."""

from __future__ import annotations

import pytest
import torch

from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.invariants.in_sync.average_text import change_of
from tests.invariants.in_sync.single_values import averaged, kept, watched


def text(average: AverageTensor) -> str:
    change = change_of(average)
    assert (change.name, change.layer, change.kind) == ("x", "", "values")
    return change.text


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (1.0, "1.0 at [0], expected 1.25 within 5.4e-07: not updated"),
        (2.0, "2.0 at [0], expected 1.25 within 5.4e-07: a copy of the model's"),
        (1.75, "1.75 at [0], expected 1.25 within 5.4e-07: as if decay weighed the new value"),
        (3.5, "3.5 at [0], expected 1.25 within 5.4e-07"),
    ],
)
def test_what_fits_is_told(now: float, told: str) -> None:
    assert text(averaged(1.0, now, 2.0, 2.0, 0.75)) == f"1 of 1 values, {told}"


def test_the_worst_of_several_values_is_told() -> None:
    was, model = torch.zeros(2, 2), torch.tensor([[2.0, 2.0], [2.0, 4.0]])
    now = torch.tensor([[1.0, 1.5], [1.25, 2.0]])
    average = AverageTensor.after_step(kept(was), watched(now), kept(model), watched(model), 0.5)
    assert text(average).startswith("2 of 4 values, 1.5 at [0, 1], expected 1.0 within ")


@pytest.mark.parametrize(("now", "told"), [(0, "0, expected 2: not updated"), (7, "7, expected 2")])
def test_a_single_integer_has_no_place_and_no_point(now: int, told: str) -> None:
    was, model, tensor = torch.tensor(0), torch.tensor(2), torch.tensor(now)
    average = AverageTensor.after_step(
        kept(was), watched(tensor), kept(model), watched(model), None
    )
    assert text(average) == told


def test_an_integer_that_is_averaged_may_be_off_by_less_than_1() -> None:
    assert text(averaged(0, 7, 5, 5, 0.5, torch.int64)).startswith(
        "1 of 1 values, 7.0 at [0], expected 2.5 within 1.0e+00"
    )
