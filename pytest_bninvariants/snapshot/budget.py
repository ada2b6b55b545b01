"""How much memory a snapshot may take."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pytest_bninvariants import run_config

# The rest is for the user's step: gradients and an optimizer's moments take two or three times what
# the parameters take.
_SHARE = 4  # a snapshot may take one in so many free bytes
_NEGLIGIBLE = 2**26  # bytes, for which looking up what is free is not worth the time
_CGROUP = Path("/sys/fs/cgroup")


def allows(count: int, device: torch.device, idle: int = 0) -> bool:
    """Tell whether a snapshot may keep some number of bytes on a device.

    Args:
        count: how many.
        device: where.
        idle: how many of the arena's bytes lie idle there, which would be used again.
    """
    limit = run_config.current.snapshot_budget
    if limit is not None:
        return count <= limit
    if count <= _NEGLIGIBLE:
        return True
    free = _free_on(device)
    return free is None or count <= (free + idle) // _SHARE


def _free_on(device: torch.device) -> int | None:
    """Return how many bytes are free; None if this cannot be found out."""
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
    """Return how many bytes a container may still take, by version 2 of cgroups."""
    try:
        most, now = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return max(int(most) - int(now), 0)
    except (OSError, ValueError):  # there is no such file, or it says `max`
        return None
