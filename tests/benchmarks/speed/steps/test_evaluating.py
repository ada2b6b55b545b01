"""The benchmark of the guards that run a model aside times each of them."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")


def test_every_guard_is_timed_beside_what_it_needs() -> None:
    from torchvision.models import resnet18

    from tests.benchmarks.speed.steps.evaluating import Evaluated, rows

    found = list(rows(Evaluated(resnet18(num_classes=10), size=32), rounds=1))
    assert [row.name.partition("(")[0] for row in found] == [
        "same_output",
        "in_sync",
        "batch_invariant",
        "accumulates",
    ]
    assert all(row.least > 0 and row.ratio > 0 for row in found)
