"""Run every benchmark, as `python -m tests.benchmarks`."""

from __future__ import annotations

from tests.benchmarks import (
    bounds,
    cost,
    detection,
    endurance,
    finetuning,
    kit,
    startup,
    tracing,
    watching,
)

for benchmark in (cost, finetuning, watching, tracing, startup, kit, endurance, detection, bounds):
    benchmark.main()
