"""The benchmark of watching runs, and times what it says."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")


def test_every_way_to_watch_is_timed_beside_a_bare_step() -> None:
    from tests.benchmarks.speed.steps.watching import rows

    timed = {name: bare for name, bare, _ in rows(rounds=1)}
    assert list(timed) == ["the audit", "the witness", "frozen_bn"]
    assert min(timed.values()) > 0
