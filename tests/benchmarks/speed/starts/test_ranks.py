"""The benchmark of ranks runs, and times what it says."""

from __future__ import annotations

from tests.benchmarks.speed.starts.ranks import measured


def test_a_test_on_two_ranks_is_timed_beside_torchrun() -> None:
    ((torchrun, setup, session),) = measured(rounds=1, warm_up=False)
    assert torchrun > 0
    assert session > setup > 0
