"""Measure a guard over many steps: what it holds in the end, and around an epoch, what it costs.

Run as `python -m tests.benchmarks.speed.endurance`; docs/performance.md has the numbers.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

from pytest_bninvariants.invariants.guard import Guard
from tests.benchmarks.speed.workloads import WORKLOADS, Workload

STEPS = 1000
EPOCH = 200


def resident() -> int:
    """Return how many bytes this process has in memory."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def grown(workload: Workload, steps: int = STEPS) -> int:
    """Return how many bytes the process has grown by after many guarded steps."""
    for _ in range(steps // 10):  # until allocators have what they keep
        workload.by_guard()
    gc.collect()
    before = resident()
    for _ in range(steps):
        workload.by_guard()
    gc.collect()
    return resident() - before


def overhead(workload: Workload, steps: int, rounds: int = 5) -> float:
    """Return the seconds that a guard takes before and after this many steps."""

    def run(guard: Callable[..., Guard]) -> float:
        start = time.perf_counter()
        made = guard(workload)
        made.start()
        entered = time.perf_counter() - start
        for _ in range(steps):
            workload.step()
        start = time.perf_counter()
        made.stop()
        made.finish()
        return entered + time.perf_counter() - start

    return median(run(workload.guard) for _ in range(rounds))


def main() -> None:
    """Print the numbers."""
    workload = WORKLOADS["W2"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(
            f"after {STEPS} guarded steps the process has grown by {grown(workload) / 1e6:.1f} MB"
        )
        one, epoch = (overhead(workload, steps) * 1e3 for steps in (1, EPOCH))
        print(f"around one step a guard takes {one:.1f} ms, around {EPOCH} steps {epoch:.1f} ms")


if __name__ == "__main__":
    main()
