"""Tensors are found by the memory that they share with others."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_bninvariants.trace.memory_index import MemoryIndex

MEMORY = torch.zeros(100)


def found(index: MemoryIndex, tensor: Tensor) -> list[str]:
    return sorted(index.overlapping(tensor))


def test_tensors_are_found_by_whatever_part_of_them_is_shared() -> None:
    index = MemoryIndex({"a": MEMORY[:10], "b": MEMORY[20:30], "c": MEMORY[40:50]})
    assert found(index, MEMORY[5:6]) == ["a"]
    assert found(index, MEMORY[9:21]) == ["a", "b"]
    assert found(index, MEMORY) == ["a", "b", "c"]
    assert found(index, MEMORY[15:60]) == ["b", "c"]
    assert found(index, MEMORY[::2].view(5, 10)[1]) == ["b"]


def test_what_lies_beside_a_tensor_is_not_found() -> None:
    index = MemoryIndex({"a": MEMORY[:10], "b": MEMORY[20:30]})
    for beside in (MEMORY[10:20], MEMORY[30:], torch.zeros(5), torch.zeros(5, device="meta")):
        assert found(index, beside) == []
    assert found(MemoryIndex({}), MEMORY) == []


def test_tensors_that_overlap_each_other_are_found_together() -> None:
    index = MemoryIndex({"before": MEMORY[:3], "whole": MEMORY[5:50], "part": MEMORY[6:8]})
    assert found(index, MEMORY[40:45]) == ["part", "whole"]
    assert found(index, MEMORY[7:8]) == ["part", "whole"]
    assert found(index, MEMORY[:1]) == ["before"]
    assert found(index, MEMORY[3:5]) == []
    touching = MemoryIndex({"one": MEMORY[:10], "two": MEMORY[10:20]})
    assert found(touching, MEMORY[10:11]) == ["two"]
    assert found(touching, MEMORY[9:10]) == ["one"]


def test_each_part_of_a_sparse_tensor_is_known() -> None:
    values = torch.ones(3)
    sparse = torch.sparse_coo_tensor(torch.arange(3)[None], values, (5,))
    index = MemoryIndex({"sparse": sparse, "dense": MEMORY})
    assert found(index, sparse._values()) == ["sparse"]
    assert found(index, MEMORY[1]) == ["dense"]
