"""Graphs of the device that `--bn-device` names, such as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import (
    FrozenStateChanged,
    GateError,
    InvariantBroken,
    bn_updates,
    frozen_bn,
)


@pytest.fixture
def capture(bn_device: torch.device) -> Callable[[Callable[[], object]], Any]:
    """A function that captures a call in a graph, after it was called to warm up."""
    module = torch.get_device_module(bn_device)
    kind = getattr(module, f"{bn_device.type.upper()}Graph", None)
    if kind is None:
        pytest.skip(f"{bn_device} has no graphs")
    around = getattr(module, "graph", lambda graph: graph)

    def capture(run: Callable[[], object]) -> Any:
        side = torch.Stream(bn_device)
        with side:
            run()
        torch.accelerator.synchronize()
        graph = kind()
        with around(graph):
            run()
        return graph

    return capture


@pytest.fixture
def net(bn_device: torch.device) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)).to(bn_device)


@pytest.fixture
def batch(bn_device: torch.device) -> Tensor:
    return torch.randn(8, 5).to(bn_device)


def test_a_replay_in_eval_holds(net: nn.Module, batch: Tensor, capture: Any) -> None:
    graph = capture(lambda: net.eval()(batch))
    with frozen_bn(net) as guard:
        graph.replay()
    assert guard.verdict is not None
    assert guard.verdict.holds


def test_a_replay_in_training_mode_is_told(net: nn.Module, batch: Tensor, capture: Any) -> None:
    graph = capture(lambda: net(batch))
    with pytest.raises(FrozenStateChanged, match="training-mode"), frozen_bn(net):
        graph.replay()


def test_updates_by_replays_are_counted(net: nn.Module, batch: Tensor, capture: Any) -> None:
    graph = capture(lambda: net(batch))
    with bn_updates(net):
        graph.replay()

    def twice() -> None:
        graph.replay()
        graph.replay()

    with pytest.raises(InvariantBroken, match="2 updates"), bn_updates(net):
        twice()


def test_a_training_step_is_captured_inside_a_guard(
    net: nn.Module, batch: Tensor, capture: Any
) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        net(batch).square().sum().backward()
        optimizer.step()

    with bn_updates(net, times=2):  # to warm up, and by the replay
        capture(step).replay()


def test_a_guard_inside_a_capture_is_refused(net: nn.Module, batch: Tensor, capture: Any) -> None:
    guards = [frozen_bn(net), frozen_bn(net)]

    def run() -> None:
        net(batch)
        guard = guards.pop()
        if not guards:  # the first call warms up
            with pytest.raises(GateError, match="entered while a graph is captured"):
                guard.__enter__()
        else:
            with pytest.raises(FrozenStateChanged), guard:
                net(batch)

    capture(run)
