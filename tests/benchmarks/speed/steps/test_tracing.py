"""What the benchmark of tracing measures, in little."""

from __future__ import annotations

import pytest

from tests.benchmarks.speed.steps.tracing import rows


@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_each_guard_is_measured_in_both_ways() -> None:
    measured = list(rows(rounds=1))
    assert [name for name, _, _ in measured] == [
        "frozen_bn, all of it",
        "frozen_bn, one tensor closely",
        "frozen, all of it",
        "frozen, one tensor closely",
    ]
    assert all(bare > 0 for _, bare, _ in measured)
