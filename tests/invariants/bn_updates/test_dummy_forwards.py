"""Updates by a batch that says nothing, or in a step that trains nothing, are hazards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from pytest_bninvariants import InvariantHazard, bn_updates
from tests.invariants.bn_updates.steps import Net, train, values
from tests.watching import watching

CONSTANT = r"bn: in 1 of 1 updates each channel of its batch had one value"
ZERO = r"bn: it was updated in a step whose gradients are all zero"


@pytest.mark.parametrize("batch", [torch.zeros(8, 3), torch.ones(8, 3), torch.randn(1, 3)])
def test_a_batch_of_one_constant_value_is_told(batch: Tensor) -> None:
    model = Net()

    def guarded() -> None:
        with watching(bn_updates(model), layers=1):
            train(model, batch.expand(8, 3))

    with pytest.warns(InvariantHazard, match=CONSTANT):
        guarded()


def step(model: nn.Module, optimizer: Optimizer, scale: float) -> Tensor:
    optimizer.zero_grad()
    loss: Tensor = scale * model(values()).square().mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("way", ["step", "closure", "no step"])
def test_a_step_whose_gradients_are_all_zero_is_told(way: str) -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)

    def guarded() -> None:
        with watching(bn_updates(model), layers=1):
            if way == "closure":
                optimizer.step(lambda: step(model, optimizer, 0.0))
            else:
                step(model, optimizer, 0.0)
            if way == "step":
                optimizer.step()

    with pytest.warns(InvariantHazard, match=ZERO):
        guarded()


@pytest.mark.filterwarnings("error::pytest_bninvariants.InvariantHazard")
def test_ordinary_steps_hold_without_a_warning() -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with watching(bn_updates(model, times="forwards"), layers=1):
        for _ in range(3):
            step(model, optimizer, 1.0)
            optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    with watching(bn_updates(model), layers=1), torch.no_grad():
        model(values())
    with watching(bn_updates(model), layers=1):
        step(model, optimizer, 1.0)
        model.zero_grad(set_to_none=False)
    dead = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    with watching(bn_updates(dead), layers=1):
        train(dead, values() * torch.tensor([1.0, 0.0, 1.0]))  # one channel of several is constant
