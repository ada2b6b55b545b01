"""Index tensors by their memory, so that aliases and views of them are recognised."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping

from torch import Tensor

from pytest_bninvariants.snapshot.addresses import spans


class MemoryIndex:
    """Find tensors by the memory that they lie in.

    Tensors whose memory overlaps share a block of the index.

    Args:
        tensors: the tensors by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        named_spans = [(*span, name) for name, tensor in tensors.items() for span in spans(tensor)]
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._names: list[list[str]] = []
        for start, end, name in sorted(named_spans):
            if self._ends and start < self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
                self._names[-1].append(name)
            else:
                self._starts.append(start)
                self._ends.append(end)
                self._names.append([name])

    def overlapping(self, tensor: Tensor) -> Iterator[str]:
        """Yield the names of the tensors that may share memory with a tensor."""
        for start, end in spans(tensor):
            block = max(bisect_right(self._starts, start) - 1, 0)
            while block < len(self._starts) and self._starts[block] < end:
                if start < self._ends[block]:
                    yield from self._names[block]
                block += 1
