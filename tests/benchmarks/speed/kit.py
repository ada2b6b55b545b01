"""Measure how many examples a second the conformance kit tries.

Run as `python -m tests.benchmarks.speed.kit`; docs/performance.md has the number.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

QUICK = 6  # examples a law
SOME = 26
KIT = ("--pyargs", "pytest_bninvariants.conformance", "-q", "-p", "no:cacheprovider")


def seconds(examples: int, *options: str) -> float:
    """Return how long the kit takes."""
    command = [sys.executable, "-m", "pytest", *KIT, f"--bn-examples={examples}", *options]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - start


def laws(*options: str) -> int:
    """Return how many tests the kit collects."""
    command = [sys.executable, "-m", "pytest", *KIT, "--co", *options]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False, text=True)
    return sum("::" in line for line in done.stdout.splitlines())


def examples_a_second(*options: str) -> float:
    """Return how many examples a second are tried, start-up not counted."""
    more = seconds(SOME, *options) - seconds(QUICK, *options)
    return laws(*options) * (SOME - QUICK) / more


def main() -> None:
    """Print the number."""
    print(f"the conformance kit tries {examples_a_second():.0f} examples a second")


if __name__ == "__main__":
    main()
