"""Measure what a test on two ranks takes beside what torchrun takes to start two processes.

Run as `python -m tests.benchmarks.speed.starts.ranks`; docs/performance.md has the numbers.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROUNDS = 10
SCRIPT = """
import torch
from torch import distributed

distributed.init_process_group("gloo")
distributed.destroy_process_group()
"""
TEST = """
import pytest
import torch


@pytest.mark.ranks(2)
def test_it():
    pass
"""
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py")
_PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "--durations=0", "test_it.py")


def seconds(folder: str, *arguments: str) -> tuple[float, str]:
    """Return how long Python runs, by the clock, and what it prints."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - start, done.stdout


def measured(rounds: int = ROUNDS, *, warm_up: bool = True) -> Iterator[tuple[float, float, float]]:
    """Yield the seconds of torchrun, of the test's setup, and of its whole session, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "script.py").write_text(SCRIPT)
        Path(folder, "test_it.py").write_text(TEST)
        if warm_up:
            seconds(folder, *_PYTEST)  # writes the bytecode
        for _ in range(rounds):
            torchrun, _ = seconds(folder, *_TORCHRUN)
            session, printed = seconds(folder, *_PYTEST)
            setup = re.search(r"([\d.]+)s setup", printed)
            assert setup is not None, printed
            yield torchrun, float(setup[1]), session


def main() -> None:
    """Print the table."""
    rounds = [*measured()]
    torchrun, setup, session = (median(column) for column in zip(*rounds, strict=True))
    print(f"torchrun starts two ranks that import torch and join in {torchrun:.1f} s (median)")
    for name, of, place in (("a test's start", setup, 1), ("the whole session", session, 2)):
        ratios = [row[place] / row[0] for row in rounds]
        print(f"{name}: {of:.1f} s, {median(ratios):.2f} of that, at most {max(ratios):.2f}")


if __name__ == "__main__":
    main()
