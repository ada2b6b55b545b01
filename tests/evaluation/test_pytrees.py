"""Nested inputs and outputs are taken apart by path, and copied."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.evaluation.pytrees import leaves, map_tensors
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.invariants.same_output.outputs import OutputSnapshot

ONE, TWO = torch.ones(2), torch.zeros(3)
Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Record:
    value: Any
    other: Any = None


class Cache:
    """An object without an equality of its own, as transformers' caches are."""

    def __init__(self, keys: Any) -> None:
        self.keys = keys


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (ONE, ["out"]),
        ({"a": ONE, 1: [TWO, None]}, ["out['a']", "out[1][0]", "out[1][1]"]),
        (UserDict(a=ONE), ["out['a']"]),
        (Pair(ONE, (TWO,)), ["out.left", "out.right[0]"]),
        (Record(Record(ONE)), ["out.value.value", "out.value.other", "out.other"]),
        (Cache([ONE, TWO]), ["out.keys[0]", "out.keys[1]"]),
        ([], ["out"]),
        (nn.Identity(), ["out"]),
        (print, ["out"]),
        ("text", ["out"]),
    ],
)
def test_each_part_has_the_path_by_which_one_gets_at_it(value: object, paths: list[str]) -> None:
    assert [path for path, _ in leaves(value, "out")] == paths


def test_what_contains_itself_ends() -> None:
    ring = Cache(None)
    ring.keys = [ring, ONE]
    assert [path for path, _ in leaves(ring, "out")] == ["out.keys[0]", "out.keys[1]"]


@pytest.mark.parametrize(
    "value",
    [
        ONE,
        [ONE, (TWO, "text")],
        OrderedDict(a=ONE, b={"c": TWO}),
        UserDict(a=ONE),
        Pair(ONE, TWO),
        Record(ONE, [TWO]),
        None,
    ],
)
def test_a_copy_is_alike_and_shares_no_tensor(value: object) -> None:
    copy = map_tensors(value, torch.clone)
    assert type(copy) is type(value)
    before, after = dict(leaves(value, "")), dict(leaves(copy, ""))
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        if isinstance(leaf, Tensor):
            assert torch.equal(after[path], leaf)  # type: ignore[arg-type]
            assert after[path] is not leaf
        else:
            assert after[path] == leaf


def differ(one: object, other: object, tolerance: Tolerance | None = None) -> list[str]:
    first, second = OutputSnapshot.take(one, "out"), OutputSnapshot.take(other, "out")
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


def test_infinities_and_nan_are_within_a_tolerance_only_of_themselves() -> None:
    inf, nan = float("inf"), float("nan")
    allowed = Tolerance(atol=1.0)
    assert differ(torch.tensor([inf, nan]), torch.tensor([inf, nan]), allowed) == []
    assert differ(torch.tensor([inf, 1.0]), torch.tensor([-inf, 1.0]), allowed) == ["out"]
    assert differ(torch.tensor([1.0]), torch.tensor([nan]), allowed) == ["out"]
