"""Memory for snapshots that serves again: what a snapshot costs first of all is fresh pages."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

_ALIGNED = 64
_WORTH_LARGE_PAGES = 2**22


class Region:
    """Bytes that a snapshot may use for as long as it holds the region.

    Args:
        arena: where they go afterwards.
        block: the bytes.
    """

    def __init__(self, arena: Arena, block: Tensor) -> None:
        self._arena = arena
        self._block = block
        self._used = 0

    def take(self, count: int) -> Tensor:
        """Return some of the bytes, which begin where any word may."""
        start = self._used
        self._used += aligned(count)
        return self._block[start : start + count]

    def __del__(self) -> None:
        self._arena.give_back(self._block)


class Arena:
    """The one block of memory that lies idle between snapshots, if any.

    Snapshots that are alive at the same time get blocks of their own; the largest stays.
    """

    def __init__(self) -> None:
        self._idle: list[Tensor] = []

    def idle_on(self, device: torch.device) -> int:
        """Return how many bytes lie idle on a device."""
        return sum(block.numel() for block in self._idle) if device.type == "cpu" else 0

    def reserve(self, count: int, device: torch.device) -> Region:
        """Return a region of at least some number of bytes.

        On other devices than the CPU, torch's own allocator keeps memory for the next.
        """
        if device.type != "cpu":
            return Region(_elsewhere, torch.empty(count, dtype=torch.uint8, device=device))
        try:
            block = self._idle.pop()
        except IndexError:
            block = _fresh(0)
        if block.numel() < count:
            del block  # before there is another
            block = _fresh(count)
        return Region(self, block)

    def give_back(self, block: Tensor) -> None:
        """Take a block back; list methods, since this may run in any thread, at any moment."""
        self._idle.append(block)
        self._idle.sort(key=Tensor.numel)
        del self._idle[:-1]

    def release(self, device: torch.device) -> None:
        """Free what lies idle on a device."""
        if device.type == "cpu":
            self._idle.clear()


class _Elsewhere(Arena):
    """Keep nothing."""

    def give_back(self, block: Tensor) -> None:
        """Leave it to torch."""


def _fresh(count: int) -> Tensor:
    """Return memory of the CPU; where Linux has large pages, the first writes take a third."""
    with torch.inference_mode(False):
        if count < _WORTH_LARGE_PAGES or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(count, dtype=torch.uint8, device="cpu")
        memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # the kernel has none
            memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=torch.uint8)


def aligned(count: int) -> int:
    """Return the bytes that `Region.take` uses up for a number of bytes."""
    return -(-count // _ALIGNED) * _ALIGNED


_elsewhere = _Elsewhere()
arena = Arena()
