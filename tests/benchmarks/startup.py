"""Measure what the plugin adds to the start of pytest where nothing uses it.

Run as `python -m tests.benchmarks.startup`; docs/performance.md has the numbers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from statistics import median

ROUNDS = 25
PLUGIN = ("-p", "pytest_bninvariants.plugin")


def seconds(options: Sequence[str], folder: str) -> float:
    """Return how long `pytest --co` takes in a folder, without other plugins, from bytecode."""
    command = [sys.executable, "-m", "pytest", "--co", "-q", "-p", "no:cacheprovider", *options]
    environment = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": os.path.join(folder, ".bytecode"),
    }
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    return time.perf_counter() - start


def added(rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the seconds without the plugin, and what it adds."""
    bare, with_it = [], []
    with tempfile.TemporaryDirectory() as folder:
        seconds(PLUGIN, folder)  # writes the bytecode
        for _ in range(rounds):
            bare.append(seconds((), folder))
            with_it.append(seconds(PLUGIN, folder))
    return median(bare), median(with_it) - median(bare)


def main() -> None:
    """Print the numbers."""
    bare, more = added()
    print(f"pytest --co takes {bare * 1e3:.0f} ms, the plugin adds {more * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
