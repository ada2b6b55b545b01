"""How much memory a snapshot may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pytest_bninvariants import run_config
from pytest_bninvariants.devices import device_module

# A snapshot may take a quarter of the free bytes. The rest is for the user's step: gradients and an
# optimizer's moments take two or three times as much as the parameters.
_FREE_PER_KEPT = 4
_NEGLIGIBLE = 2**26  # bytes for which it is not worth the time to look up how many are free
_CGROUP = Path("/sys/fs/cgroup")


def allows(count: int, device: torch.device, idle: int = 0) -> bool:
    """Tell whether a snapshot may keep some number of bytes on a device.

    Args:
        count: how many bytes.
        device: the device.
        idle: how many bytes lie idle in the arena of the device, and would be reused.
    """
    limit = run_config.current.snapshot_budget
    if limit is not None:
        return count <= limit
    if count <= _NEGLIGIBLE:
        return True
    free = _free_on(device)
    return free is None or count <= (free + idle) // _FREE_PER_KEPT


def _free_on(device: torch.device) -> int | None:
    """Return how many bytes are free on a device; None if that is unknown."""
    if device.type == "cpu":
        return min(
            (n for n in (_free_in_machine(), _free_in_group()) if n is not None), default=None
        )
    module = device_module(device.type)
    try:
        return int(module.mem_get_info(device)[0]) + _cached_on(device, module)
    except (AttributeError, RuntimeError):
        return None


def _cached_on(device: torch.device, module: Any) -> int:
    """Return how many free bytes an allocator keeps for itself; 0 if it keeps no statistics.

    One that is plugged in, such as RMM's, refuses to give statistics:
    https://docs.pytorch.org/docs/stable/notes/cuda.html#using-custom-memory-allocators-for-cuda
    """
    try:
        return int(module.memory_reserved(device) - module.memory_allocated(device))
    except (AttributeError, RuntimeError):
        return 0


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
    """Return how many bytes a container may still take, according to cgroup v2."""
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return max(int(limit) - int(used), 0)
    except (OSError, ValueError):  # there is no such file, or it says `max`
        return None
