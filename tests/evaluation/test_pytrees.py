"""Nested inputs and outputs are taken apart by path, and copied."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.evaluation.pytrees import leaves, map_tensors

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


class Boxes:
    """An object with slots alone, as detectors return."""

    __slots__ = ("__own", "corners", "unset")

    def __init__(self, corners: Any, own: Any = None) -> None:
        self.corners, self.__own = corners, own


class Labelled(Boxes):
    """An object with slots, and a dict as well."""

    def __init__(self, corners: Any, label: str) -> None:
        super().__init__(corners)
        self.label = label


def test_slots_are_parts_and_a_slot_without_a_value_is_none() -> None:
    assert dict(leaves(Boxes(ONE, [TWO]), "out")).keys() == {"out._Boxes__own[0]", "out.corners"}
    labelled = dict(leaves(Labelled(ONE, "cat"), "out"))
    assert labelled["out.corners"] is ONE
    assert labelled["out.label"] == "cat"


def test_two_values_that_contain_themselves_alike_have_equal_leaves() -> None:
    def ring(tensor: Tensor) -> dict[str, Any]:
        made: dict[str, Any] = {"tensor": tensor, "list": []}
        made["list"].append(made)
        made["list"].append(made["list"])
        return made

    first, second = (dict(leaves(ring(ONE), "out")) for _ in range(2))
    assert first == second
    assert first["out['list'][0]"] != first["out['list'][1]"]


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
