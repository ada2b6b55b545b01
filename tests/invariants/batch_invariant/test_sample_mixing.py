"""The first part of a module is found in which samples depend on each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.invariants.batch_invariant.sample_mixing import (
    first_mixing_part,
    recorded_outputs,
)

WHOLE = torch.tensor([[1.0, 2.0], [3.0, -8.0], [5.0, 6.0]])
OFF = WHOLE[[2, 1]] + 1
ORDER = (2, 1)


def found(first: Tensor, first_part: Tensor, rounding: float = 0.0) -> str | None:
    """Return the part that is found, of one with these outputs and one that surely differs."""
    whole = {("first", 0): first, ("second", 0): WHOLE}
    part = {("first", 0): first_part, ("second", 0): OFF}
    return first_mixing_part(whole, part, ORDER, rounding)


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        (torch.tensor(1.0), OFF),
        (WHOLE, torch.tensor(1.0)),
        (WHOLE, WHOLE),
        (WHOLE[:2], OFF),
        (WHOLE, torch.zeros(2, 3)),
        (WHOLE[:, :0], OFF[:, :0]),
        (WHOLE, WHOLE[[2, 1]]),
    ],
    ids=["scalar", "scalar part", "all rows", "few rows", "another shape", "no values", "equal"],
)
def test_an_output_that_cannot_be_compared_or_agrees_hides_no_later_one(
    whole: Tensor, part: Tensor
) -> None:
    assert found(whole, part) == "second"


def test_a_part_that_ran_in_the_whole_batch_alone_hides_no_later_one() -> None:
    whole = {("first", 0): WHOLE, ("second", 0): WHOLE}
    assert first_mixing_part(whole, {("second", 0): OFF}, ORDER, 0.0) == "second"


def test_the_first_that_differs_is_found_and_without_one_none() -> None:
    assert found(WHOLE, OFF) == "first"
    same = {("first", 0): WHOLE}
    assert first_mixing_part(same, {("first", 0): WHOLE[[2, 1]]}, ORDER, 0.0) is None


@pytest.mark.parametrize(("rounding", "name"), [(0.126, "second"), (0.124, "first")])
def test_rounding_is_relative_to_the_largest_value(rounding: float, name: str) -> None:
    whole = {("first", 0): WHOLE, ("second", 0): WHOLE}
    part = {("first", 0): OFF, ("second", 0): OFF + 9}
    assert first_mixing_part(whole, part, ORDER, rounding) == name


def test_each_call_of_a_part_is_recorded_with_its_first_tensor() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> int:
            self.pair(self.pair(x)["y"])
            return 3

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"n": 1, "y": 2 * x, "z": x}

    model = Twice()
    with recorded_outputs(model) as recording:
        model(torch.ones(2))
    assert {key: value.tolist() for key, value in recording.items()} == {
        ("pair", 0): [2.0, 2.0],
        ("pair", 1): [4.0, 4.0],
    }
    assert not model.pair._forward_hooks
