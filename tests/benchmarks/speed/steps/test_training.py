"""The benchmark of guards around a training step runs, and times what it says."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")


def test_every_guard_is_timed_beside_a_bare_step() -> None:
    from torchvision.models import resnet18

    from tests.benchmarks.speed.steps.training import WholeTraining, rows

    timed = {name: bare for name, bare, _ in rows(WholeTraining(resnet18()), rounds=1)}
    assert list(timed) == ["bn_updates(model)", "trains(model)", "trains(model, buffers=False)"]
    assert min(timed.values()) > 0
