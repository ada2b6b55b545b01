"""Without a second model, in_sync compares the ranks of a distributed run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_ranks_are_compared_with_each_other(ranks: Callable[..., list[Any]]) -> None:
    for found in ranks("syncing_rank.py"):
        assert found["built"] == found["wrapped"] == ""
        told = found["loaded on one rank"]
        assert told.startswith("1 of 3 layers differs between ranks: 1")
        assert "1.running_mean mean 0 on rank 0, mean 7 on rank 1" in told
