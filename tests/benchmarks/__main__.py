"""Run every benchmark, as `python -m tests.benchmarks`."""

from __future__ import annotations

from tests.benchmarks.accuracy import accumulating, bounds, detection
from tests.benchmarks.speed import cost, endurance, kit, neighbours, startup
from tests.benchmarks.speed.starts import ranks
from tests.benchmarks.speed.steps import evaluating, finetuning, tracing, training, watching

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
