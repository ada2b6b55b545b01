"""Reuse the memory of snapshots: most of the time that a snapshot takes goes into fresh pages."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

# Bytes of a cache line; torch aligns its own memory to them, too:
# https://github.com/pytorch/pytorch/blob/main/c10/core/alignment.h
_ALIGNMENT = 64
# Bytes of two large pages of 2 MB: fewer need not contain a whole one.
# https://docs.kernel.org/admin-guide/mm/transhuge.html
_WORTH_LARGE_PAGES = 2**22


class Region:
    """Bytes that a snapshot may use for as long as it holds the region.

    Args:
        arena: the arena that takes the bytes back.
        block: the bytes.
    """

    def __init__(self, arena: Arena, block: Tensor) -> None:
        self._arena = arena
        self._block = block
        self._used = 0

    def take(self, count: int) -> Tensor:
        """Return the next bytes of the region, aligned for integers of any width."""
        start = self._used
        self._used += aligned_size(count)
        return self._block[start : start + count]

    def __del__(self) -> None:
        self._arena.give_back(self._block)


class Arena:
    """Keep one block of memory between snapshots.

    Snapshots that are alive at the same time get a block each; afterwards the largest one stays.
    """

    def __init__(self) -> None:
        self._idle: list[Tensor] = []

    def idle_on(self, device: torch.device) -> int:
        """Return how many bytes lie idle on a device."""
        return sum(block.numel() for block in self._idle) if device.type == "cpu" else 0

    def reserve(self, count: int, device: torch.device) -> Region:
        """Return a region of at least some number of bytes.

        On devices other than the CPU, torch's own allocator keeps memory for the next snapshot.
        """
        if device.type != "cpu":
            return Region(_no_arena, torch.empty(count, dtype=torch.uint8, device=device))
        try:
            block = self._idle.pop()
        except IndexError:
            block = _fresh(0)
        if block.numel() < count:
            del block  # frees it before the larger one is allocated
            block = _fresh(count)
        return Region(self, block)

    def give_back(self, block: Tensor) -> None:
        """Take a block back.

        A destructor calls this, in any thread and at any moment: each list method is atomic.
        """
        self._idle.append(block)
        self._idle.sort(key=Tensor.numel)
        del self._idle[:-1]

    def release(self, device: torch.device) -> None:
        """Free what lies idle on a device."""
        if device.type == "cpu":
            self._idle.clear()


class _NoArena(Arena):
    """Keep no memory on devices where torch's own allocator does."""

    def give_back(self, block: Tensor) -> None:
        """Let torch free the block."""


def _fresh(count: int) -> Tensor:
    """Allocate CPU memory, on Linux in large pages: first writes take a third of the time."""
    with torch.inference_mode(False):
        if count < _WORTH_LARGE_PAGES or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(count, dtype=torch.uint8, device="cpu")
        memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # the kernel has no large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=torch.uint8)


def aligned_size(count: int) -> int:
    """Return how many bytes of a region `Region.take` uses up."""
    return -(-count // _ALIGNMENT) * _ALIGNMENT


_no_arena = _NoArena()
arena = Arena()
