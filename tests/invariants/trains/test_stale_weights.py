"""One autocast context around several steps keeps the first casts of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from pytest_bninvariants import InvariantHazard, trains
from tests.invariants.trains.steps import Net, batch
from tests.watching import watching


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(batch()).float().square().mean().backward()
    optimizer.step()


def test_weights_that_step_twice_in_one_autocast_context_are_told(net: Net) -> None:
    optimizer = SGD(net.parameters(), lr=0.1)

    def guarded() -> None:
        with watching(trains(net), layers=4), torch.autocast("cpu", torch.bfloat16):
            for _ in range(3):
                step(net, optimizer)

    with pytest.warns(InvariantHazard) as caught:
        guarded()
    (warning,) = caught
    assert "body.weight and 1 more: stale-weights: steps moved it" in str(warning.message)
    assert "torch.clear_autocast_cache()" in str(warning.message)


def test_only_weights_that_have_a_gradient_again_are_told(net: Net) -> None:
    optimizer = SGD(net.parameters(), lr=0.1)

    def guarded() -> None:
        with watching(trains(net), layers=4), torch.autocast("cpu", torch.bfloat16):
            step(net, optimizer)
            optimizer.zero_grad()
            net.head(torch.ones(2, 8)).float().square().mean().backward()
            optimizer.step()

    with pytest.warns(InvariantHazard, match=r"holds, but head\.weight: stale-weights"):
        guarded()


@pytest.mark.filterwarnings("error::pytest_bninvariants.InvariantHazard")
@pytest.mark.parametrize("way", ["a context each", "cleared", "no cache", "once", "bfloat16"])
def test_steps_whose_casts_are_fresh_hold_without_a_warning(net: Net, way: str) -> None:
    if way == "bfloat16":
        net = net.bfloat16()
    optimizer = SGD(net.parameters(), lr=0.5)
    cached = way != "no cache"

    def many() -> None:
        for _ in range(1 if way == "once" else 3):
            step(net, optimizer)
            if way == "cleared":
                torch.clear_autocast_cache()

    with watching(trains(net, buffers=False), layers=4):
        for _ in range(3 if way == "a context each" else 1):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
                step(net, optimizer) if way == "a context each" else many()


@pytest.mark.filterwarnings("error::pytest_bninvariants.InvariantHazard")
def test_two_optimizers_that_step_once_in_a_context_hold_without_a_warning(net: Net) -> None:
    optimizers = [SGD(part.parameters(), lr=0.1) for part in (net.body, net.head)]
    with watching(trains(net), layers=4), torch.autocast("cpu", torch.bfloat16):
        net(batch()).float().square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_a_guard_in_autocast_leaves_the_values_as_they_are() -> None:
    def run(model: Net) -> None:
        optimizer = SGD(model.parameters(), lr=0.1)
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            step(model, optimizer)
            step(model, optimizer)

    bare, guarded = Net(), Net()
    guarded.load_state_dict(bare.state_dict())
    run(bare)
    with pytest.warns(InvariantHazard, match="stale-weights"), trains(guarded):
        run(guarded)
    for name, value in bare.state_dict().items():
        assert value.equal(guarded.state_dict()[name]), name
