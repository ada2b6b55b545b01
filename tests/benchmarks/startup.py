"""Measure what the plugin adds to the start of pytest where nothing uses it.

Run as `python -m tests.benchmarks.startup`; docs/performance.md has the numbers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROUNDS = 25
WAYS = {
    "no plugin": (),
    "an empty one": ("-p", "empty_plugin"),
    "ours": ("-p", "pytest_bninvariants.plugin"),
}


def seconds(way: str, folder: str) -> float:
    """Return the processor's time for `pytest --co` in an empty folder, from bytecode."""
    environment = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPATH": os.pathsep.join([folder, *sys.path]),
        "PYTHONPYCACHEPREFIX": os.path.join(folder, "bytecode"),
    }
    inside = Path(folder, "empty")
    inside.mkdir(exist_ok=True)
    Path(folder, "empty_plugin.py").touch()
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--co", "-q", "-p", "no:cacheprovider", *WAYS[way]],
        cwd=inside,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 5, "pytest did not come to its end: no tests were collected"
    return used.ru_utime + used.ru_stime


def measured(rounds: int = ROUNDS) -> dict[str, float]:
    """Return the medians of each way, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            seconds(way, folder)  # writes the bytecode
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, taken in times.items():
                taken.append(seconds(way, folder))
    return {way: median(taken) for way, taken in times.items()}


def main() -> None:
    """Print the numbers."""
    bare, *others = measured().items()
    print(f"pytest --co takes {bare[1] * 1e3:.0f} ms of a processor")
    for way, taken in others:
        print(f"with {way} {(taken - bare[1]) * 1e3:.1f} ms more")


if __name__ == "__main__":
    main()
