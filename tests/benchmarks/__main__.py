"""Run every benchmark, as `python -m tests.benchmarks`."""

from __future__ import annotations

from tests.benchmarks.accuracy import bounds, detection, kit
from tests.benchmarks.speed import cost, endurance, finetuning, startup, tracing, watching

for benchmark in (cost, finetuning, watching, tracing, startup, kit, endurance, detection, bounds):
    benchmark.main()
