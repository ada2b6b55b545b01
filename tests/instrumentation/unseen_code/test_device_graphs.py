"""Captures and replays of device graphs; tests/simulated_device/test_graphs.py runs real ones."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from pytest_bninvariants import frozen_bn
from pytest_bninvariants.devices import graph_classes
from tests.instrumentation.recorder import recording

CLASSES = {
    f"{owner.__module__}.{owner.__name__}": owner
    for owner in (
        torch.cuda.CUDAGraph,
        getattr(torch.xpu, "XPUGraph", None),
        getattr(getattr(torch, "accelerator", None), "Graph", None),
    )
    if owner is not None
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_replay_of_each_kind_of_graph_is_heard(name: str) -> None:
    owner, model = CLASSES[name], nn.BatchNorm1d(3).eval()
    assert owner in graph_classes()
    bare = owner.replay
    with frozen_bn(model) as guard, suppress(AttributeError, TypeError):
        owner.replay(object())  # there is no device to replay a real one
    assert guard.verdict is not None
    assert guard.verdict.holds
    assert owner.replay is bare


def test_graphs_are_wrapped_only_while_somebody_observes() -> None:
    def methods() -> list[object]:
        names = ("capture_begin", "capture_end", "replay")
        return [getattr(owner, name) for owner in graph_classes() for name in names]

    before = methods()
    assert before
    with recording():
        assert not any(now is bare for now, bare in zip(methods(), before, strict=True))
    assert methods() == before
