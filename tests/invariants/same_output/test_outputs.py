"""Outputs of any kind are compared by path, exactly or within a tolerance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_bninvariants.evaluation.pytrees import map_tensors
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.invariants.same_output.outputs import OutputSnapshot


class Cache:
    """An object without an equality of its own, as transformers' caches are."""

    def __init__(self, keys: Any) -> None:
        self.keys = keys


def differ(one: object, other: object, tolerance: Tolerance | None = None) -> list[str]:
    first, second = (OutputSnapshot.take(each, "out", exact=True) for each in (one, other))
    return [change.name for change in first.changes_to(second, tolerance or Tolerance())]


def test_equal_outputs_do_not_differ_whatever_they_are() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    values = [nan, [nan, "text"], {"n": float("nan")}, [], Cache(nan), 3, None, print]
    for value in values:
        assert differ(value, map_tensors(value, torch.clone)) == []
    assert differ(torch.ones(2).numpy(), torch.ones(2).numpy()) == []
    assert differ(torch.ones(2).numpy(), torch.zeros(2).numpy()) == ["out"]
    assert differ([], ()) == ["out"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64])
def test_a_tolerance_counts_in_every_dtype(dtype: torch.dtype) -> None:
    one = torch.tensor([[1, 2], [3, 4]]).to(dtype)
    other = one + torch.tensor([[0, 1], [0, 0]]).to(dtype)
    assert differ(one, other) == ["out"]
    assert differ(one, other, Tolerance(atol=1.0)) == []
    assert differ(one, other, Tolerance(rtol=0.4)) == ["out"]
    assert differ(one, other, Tolerance(rtol=0.5)) == []


def test_a_tolerance_is_relative_to_what_was_there_before() -> None:
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert differ(one, two, Tolerance(rtol=0.9)) == ["out"]
    assert differ(one, two, Tolerance(rtol=1.0)) == []
    assert differ(two, one, Tolerance(rtol=0.4)) == ["out"]
    assert differ(two, one, Tolerance(rtol=0.5)) == []
    assert differ(two, one, Tolerance(rtol=0.25, atol=0.4)) == ["out"]
    assert differ(two, one, Tolerance(rtol=0.25, atol=0.5)) == []


def test_infinities_and_nan_are_within_a_tolerance_only_of_themselves() -> None:
    inf, nan = float("inf"), float("nan")
    allowed = Tolerance(atol=1.0)
    assert differ(torch.tensor([inf, nan]), torch.tensor([inf, nan]), allowed) == []
    assert differ(torch.tensor([inf, 1.0]), torch.tensor([-inf, 1.0]), allowed) == ["out"]
    assert differ(torch.tensor([1.0]), torch.tensor([nan]), allowed) == ["out"]


def test_an_output_of_another_kind_hides_no_other_change() -> None:
    one, two = torch.ones(2), torch.zeros(2)
    assert differ([one, one], ["text", two]) == ["out[0]", "out[1]"]
    assert differ(["text", 1], [one, 2]) == ["out[0]", "out[1]"]
    assert differ([one, one], ["text", one]) == ["out[0]"]
