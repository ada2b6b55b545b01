"""Run every benchmark, as `python -m tests.benchmarks`."""

from __future__ import annotations

from tests.benchmarks.accuracy import accumulating, bounds, detection
from tests.benchmarks.speed import (
    cost,
    endurance,
    evaluating,
    finetuning,
    kit,
    neighbours,
    startup,
    tracing,
    training,
    watching,
)

SPEED = (
    cost,
    neighbours,
    finetuning,
    training,
    evaluating,
    watching,
    tracing,
    startup,
    kit,
    endurance,
)
ACCURACY = (detection, accumulating, bounds)

for benchmark in SPEED + ACCURACY:
    benchmark.main()
