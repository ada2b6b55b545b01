"""Measure what the plugin adds to the start of pytest where nothing uses it.

Run as `python -m tests.benchmarks.speed.startup`; docs/performance.md has the numbers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROUNDS = 40
WAYS = {"without": ("-p", "no:bninvariants"), "with": ()}
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def seconds(way: str, folder: str) -> float:
    """Return the processor's time for `pytest --co` in an empty folder, from bytecode."""
    environment = os.environ | {
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": os.path.join(folder, "bytecode"),
    }
    inside = Path(folder, "empty")
    inside.mkdir(exist_ok=True)
    run = subprocess.Popen(
        [*_PYTEST, "--co", *WAYS[way]],
        cwd=inside,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 5, "pytest did not come to its end: no tests were collected"
    return used.ru_utime + used.ru_stime


def is_loaded(way: str, folder: str) -> bool:
    """Tell whether a way of starting loads the plugin."""
    told = subprocess.run(
        [*_PYTEST, "--markers", *WAYS[way]], cwd=folder, capture_output=True, text=True, check=True
    )
    return "frozen_bn" in told.stdout


def measured(rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the median without the plugin, and that of the differences, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            assert is_loaded(way, folder) is (way == "with"), "the plugin must be installed"
            seconds(way, folder)  # writes the bytecode
        times = [{way: seconds(way, folder) for way in WAYS} for _ in range(rounds)]
    return (
        median(each["without"] for each in times),
        median(each["with"] - each["without"] for each in times),
    )


def main() -> None:
    """Print the numbers."""
    bare, more = measured()
    print(f"pytest --co -p no:bninvariants takes {bare * 1e3:.0f} ms of a processor")
    print(f"with the plugin {more * 1e3:.1f} ms more")


if __name__ == "__main__":
    main()
