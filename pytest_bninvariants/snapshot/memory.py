"""Memory for snapshots that serves again: what a snapshot costs first of all is fresh pages."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from pytest_bninvariants import run_config

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


_SHARE = 4  # of the memory that is free, one in so many bytes
_NEGLIGIBLE = 2**26
_GROUP = Path("/sys/fs/cgroup")


def allows(count: int, device: torch.device, idle: int = 0) -> bool:
    """Tell whether a snapshot may keep some number of bytes on a device.

    Args:
        count: how many.
        device: where.
        idle: how many are ours there already.
    """
    limit = run_config.current.snapshot_budget
    if limit is not None:
        return count <= limit
    if count <= _NEGLIGIBLE:
        return True
    free = _free_on(device)
    return free is None or count <= (free + idle) // _SHARE


def _free_on(device: torch.device) -> int | None:
    """Return how much memory is free; None where nobody tells."""
    if device.type == "cpu":
        return min(
            (n for n in (_free_in_machine(), _free_in_group()) if n is not None), default=None
        )
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return None


def _free_in_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _free_in_group() -> int | None:
    """Return what a container may still take."""
    try:
        most, now = ((_GROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return max(int(most) - int(now), 0)
    except (OSError, ValueError):  # there is no such file, or it says `max`
        return None
