"""The benchmark of the guards that run a model aside times each of them."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")


def test_every_guard_is_timed_beside_what_it_needs() -> None:
    from torch import nn

    from tests.benchmarks.speed.steps.evaluating import Evaluated, rows

    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*parts, nn.Linear(4, 10))
    found = list(rows(Evaluated(model, size=8, examples=2), rounds=1))
    assert [row.name.partition("(")[0] for row in found] == [
        "same_output",
        "in_sync",
        "batch_invariant",
        "accumulates",
    ]
    assert all(row.least > 0 and row.ratio > 0 for row in found)
