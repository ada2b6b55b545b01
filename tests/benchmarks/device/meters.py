"""Meters of a device: how often the host waited for it, and how much memory it took."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from pytest_bninvariants.devices import device_module, wait_for


def make_known(device: str) -> None:
    """Make the simulated device known to torch, if that is the one."""
    if device.startswith("simdev"):
        import tests.simulated_device.device  # noqa: F401


def describe(device: str) -> str:
    """Return what the device is, and which torch runs on it."""
    lines = [f"device {device}", f"torch {torch.__version__}"]
    if device.startswith("cuda"):
        lines += [
            torch.cuda.get_device_name(device),
            f"CUDA {torch.version.cuda}",
            f"cuDNN {torch.backends.cudnn.version()}",
        ]
    return ", ".join(lines)


def seconds(device: str, run: Callable[[], object], rounds: int) -> float:
    """Return the median of how long something takes, until the device has done it."""
    taken = []
    for _ in range(rounds):
        wait_for([torch.device(device)])
        start = time.perf_counter()
        run()
        wait_for([torch.device(device)])
        taken.append(time.perf_counter() - start)
    return median(taken)


@contextmanager
def waits(device: str) -> Iterator[list[int]]:
    """Count how often the host waits for a device; the count is there when the block has ended.

    On CUDA these are the operations that torch warns of, and calls of `synchronize`.
    """
    count: list[int] = []
    if device.startswith("simdev"):
        from tests.simulated_device.device import counted

        with counted() as happened:
            yield count
        count.append(happened.waits)
    else:
        with _cuda_waits() as count:
            yield count


@contextmanager
def _cuda_waits() -> Iterator[list[int]]:
    count: list[int] = []
    calls: list[object] = []
    synchronize = torch.cuda.synchronize

    def counting(device: object = None) -> None:
        calls.append(device)
        synchronize(device)

    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize = counting
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield count
    finally:
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.synchronize = synchronize
    told = [each for each in caught if "synchronizing CUDA operation" in str(each.message)]
    count.append(len(told) + len(calls))


def can_count_waits(device: str) -> bool:
    """Tell whether waits for this kind of device can be counted."""
    return device.startswith(("simdev", "cuda"))


def peak_of(device: str, run: Callable[[], object]) -> int | None:
    """Return how many bytes a device held at most while something ran, beyond those before.

    None if the device does not tell.
    """
    if device.startswith("simdev"):
        from tests.simulated_device.device import peak

        with peak(torch.device(device).index or 0) as most:
            run()
        return most[0]
    module = device_module(torch.device(device).type)
    if not hasattr(module, "max_memory_allocated"):
        return None
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    run()
    return int(module.max_memory_allocated(device) - before)
