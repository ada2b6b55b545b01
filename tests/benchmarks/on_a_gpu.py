"""Measure and check on a GPU all that needs one, in under ten minutes; print a report in markdown.

Run as `python -m tests.benchmarks.on_a_gpu > report.md`, with `--device` for another than `cuda`.
Each part runs in a process of its own, and has its own time. It ends with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the measurements.

    Args:
        title: what it measures or checks.
        function: the function that does, as `module:name`.
        limit: the seconds that it may take.
    """

    title: str
    function: str
    limit: float


PARTS = {
    "suite": Part(title="Tests of guards on the device", function="sessions:suite", limit=40),
    "kit": Part(title="Laws of BatchNorm, with cuDNN", function="sessions:kit", limit=80),
    "kit-without-cudnn": Part(
        title="Laws of BatchNorm, without cuDNN", function="sessions:kit_without_cudnn", limit=80
    ),
    "kit-channels-last": Part(
        title="Laws of values in channels_last", function="sessions:kit_in_channels_last", limit=50
    ),
    "epoch": Part(title="bn_updates over an epoch", function="epochs:main", limit=70),
    "flips": Part(title="Detection", function="effects:flips", limit=110),
    "neutrality": Part(title="Neutrality", function="effects:neutrality", limit=25),
    "waits": Part(title="Waits of the host", function="costs:count_waits", limit=25),
    "memory": Part(title="Memory", function="costs:memory", limit=25),
    "ratios": Part(title="Ratios", function="costs:ratios", limit=60),
}
"""All parts; together they may take ten minutes, the start of each included."""


def run_part(name: str, part: Part, device: str, *, tiny: bool) -> bool:
    """Run a part in a process of its own, print what it prints, and return whether it held."""
    command = [sys.executable, "-m", "tests.benchmarks.on_a_gpu", f"--part={name}"]
    command += [f"--device={device}", *(["--tiny"] if tiny else [])]
    print(f"\n## {part.title}\n", flush=True)
    start = time.perf_counter()
    try:
        ended = _run_within(part.limit, command)
        outcome = "held" if ended == 0 else f"FAILED, with exit status {ended}"
    except subprocess.TimeoutExpired:
        outcome = f"FAILED: not done in {part.limit:.0f} s"
    print(f"\n{name}: {outcome}, after {time.perf_counter() - start:.0f} s", flush=True)
    return outcome == "held"


def _run_within(limit: float, command: list[str]) -> int:
    """Return a command's exit status; if it takes too long, it ends with all that it started."""
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def run_here(part: Part, device: str, *, tiny: bool) -> int:
    """Run a part in this process, and return its exit status."""
    from pkgutil import resolve_name

    from tests.benchmarks.device.report import Report

    warnings.simplefilter("ignore")
    function: Callable[[Report], None] = resolve_name(f"tests.benchmarks.device.{part.function}")
    report = Report(device, tiny=tiny)
    function(report)
    return int(report.failures > 0)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, and return the exit status."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.on_a_gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="the device, as --bn-device takes it")
    parser.add_argument("--tiny", action="store_true", help="do little, to try the script")
    parser.add_argument("--part", choices=PARTS, help="run one part, in this process")
    parser.add_argument("--parts", default=",".join(PARTS), help="the parts to run, with commas")
    given = parser.parse_args(arguments)
    unknown = set(given.parts.split(",")) - PARTS.keys()
    if unknown:
        missing = ", ".join(sorted(unknown))
        parser.error(f"--parts: no such part: {missing}; there are {', '.join(PARTS)}")
    from pytest_bninvariants.devices import resolve_devices
    from tests.benchmarks.device.meters import describe, make_known

    make_known(given.device)
    try:
        resolve_devices([given.device], "--device")
    except ValueError as error:
        parser.error(str(error))
    if given.part:
        return run_here(PARTS[given.part], given.device, tiny=given.tiny)
    start = time.perf_counter()
    print(f"# Measured on a device\n\n{describe(given.device)}", flush=True)
    held = {
        name: run_part(name, PARTS[name], given.device, tiny=given.tiny)
        for name in given.parts.split(",")
    }
    failed = [name for name, holds in held.items() if not holds]
    print(f"\n## Outcome\n\n{len(held)} parts in {time.perf_counter() - start:.0f} s")
    print(f"failed: {', '.join(failed)}" if failed else "all held", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
