"""Flip ten thousand bits, and leave as many steps untouched: all are found, and no alarm is false.

Run as `python -m tests.benchmarks.accuracy.detection`; docs/performance.md has the outcome.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pytest_bninvariants.run_config import override
from pytest_bninvariants.snapshot import fingerprints
from tests.snapshot.flips import LEAVING, WAYS, Holder, alarmed, missed, ways_on

TIMES = 10_000
KEEPING = ("exact", "xxhash", "torch operators")


@contextmanager
def kept(how: str) -> Iterator[None]:
    """Keep large tensors exactly, or by fingerprints."""
    known = fingerprints._xxhash
    fingerprints._xxhash = known if how == "xxhash" else lambda: None  # type: ignore[assignment]
    try:
        with override(snapshot_budget=None if how == "exact" else 0):
            yield
    finally:
        fingerprints._xxhash = known


def flips(how: str, times: int = TIMES, device: str = "cpu") -> list[str]:
    """Return what went wrong with flips that a guard should find."""
    numbers = random.Random(0)
    torch.manual_seed(0)
    ways, failures = ways_on(device), []
    with kept(how):
        for number in range(times):
            if number % 500 == 0:  # most floats of one that was flipped often are no numbers
                model = Holder().to(device)
            failure = missed(model, numbers.choice(ways), numbers)
            failures += [] if failure is None else [failure]
    return failures


def alarms(how: str, times: int = TIMES, device: str = "cpu") -> int:
    """Return how many steps that left all as it was were said to have changed something."""
    numbers = random.Random(1)
    model = Holder().to(device)
    with kept(how):
        return sum(alarmed(model, numbers.choice([*LEAVING])) for _ in range(times))


def main() -> None:
    """Print the outcome."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for how in KEEPING:
            failures = flips(how)
            print(f"{how}: {TIMES} flips by {len(WAYS)} ways, {len(failures)} missed")
            print(*failures[:10], sep="\n", end="\n" * bool(failures))
            print(f"{how}: {TIMES} untouched steps, {alarms(how)} alarms")


if __name__ == "__main__":
    main()
