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
from tests.benchmarks.speed.starts import ranks

SPEED = (
    cost,
    neighbours,
    finetuning,
    training,
    evaluating,
    watching,
    tracing,
    startup,
    ranks,
    kit,
    endurance,
)
ACCURACY = (detection, accumulating, bounds)

for benchmark in SPEED + ACCURACY:
    benchmark.main()
