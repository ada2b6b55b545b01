"""Measure what a guard costs beside what people write by hand, on five shapes of models.

Run as `python -m tests.benchmarks.speed.cost`; docs/performance.md has the table.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

from pytest_bninvariants.run_config import override
from pytest_bninvariants.snapshot.arena import arena
from tests.benchmarks.markdown import table
from tests.benchmarks.speed.workloads import WORKLOADS, Workload

ROUNDS = 9
FIRSTS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one workload took: seconds by hand, and ratios to that.

    Args:
        name: the workload's name.
        count: how many tensors it watches.
        size: how many bytes they have.
        hand: the seconds of a step and a comparison by hand.
        first: a guard whose memory is fresh.
        later: a guard whose memory served before.
        fingerprint: a guard that keeps fingerprints.
        plain: a copy and a comparison of each tensor, without anything else.
    """

    name: str
    count: int
    size: int
    hand: float
    first: float
    later: float
    fingerprint: float
    plain: float


def seconds(run: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, workload: Workload, rounds: int = ROUNDS) -> Row:
    """Run each way in turn, and compare the medians."""
    firsts = []
    for _ in range(min(rounds, FIRSTS)):
        arena.release(torch.device("cpu"))
        firsts.append(seconds(workload.by_guard))
    ways: dict[str, Callable[[], object]] = {
        "hand": workload.by_hand,
        "later": workload.by_guard,
        "fingerprint": lambda: _by_fingerprint(workload),
        "plain": workload.bound,
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            workload.by_guard()  # so that the arena is as a step before leaves it
            times[way].append(seconds(run))
    hand = median(times.pop("hand"))
    ratios = {way: median(taken) / hand for way, taken in times.items()}
    return Row(
        name=name,
        count=workload.count,
        size=workload.size,
        hand=hand,
        first=median(firsts) / hand,
        **ratios,
    )


def _by_fingerprint(workload: Workload) -> None:
    with override(snapshot_budget=0):
        workload.by_guard()


def rows(names: Iterable[str] = WORKLOADS) -> Iterator[Row]:
    """Measure workloads by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            yield measure(name, WORKLOADS[name]())
            arena.release(torch.device("cpu"))
            gc.collect()


def text(found: Iterable[Row]) -> str:
    """Return a table."""
    head = ["", "what", "tensors", "MB", "by hand, ms", "first guard", "later", "fingerprint"]
    lines = [
        [
            row.name,
            WORKLOADS[row.name].what,
            f"{row.count:,}",
            f"{row.size / 1e6:,.1f}",
            f"{row.hand * 1e3:.1f}",
            *(f"{ratio:.2f}" for ratio in (row.first, row.later, row.fingerprint, row.plain)),
        ]
        for row in found
    ]
    return table([*head, "clone + equal"], lines)


def main() -> None:
    """Print the table."""
    print(text(rows()))


if __name__ == "__main__":
    main()
