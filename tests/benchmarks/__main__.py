"""Run every benchmark, as `python -m tests.benchmarks`."""

from __future__ import annotations

from tests.benchmarks import bounds, tracing, watching

bounds.main()
tracing.main()
watching.main()
