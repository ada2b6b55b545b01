"""Samples of values tell what moved; where they cannot, all values are compared."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pytest_bninvariants import trains
from tests.invariants.trains.steps import broken, causes

ROW = 1  # the only one that a step uses; the sample has none of it


class Lookup(nn.Module):
    """A table of which a step uses one row."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(1000, 300))

    def forward(self) -> Tensor:
        return self.table[ROW, 1:].square().sum()


def step(model: nn.Module, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model().backward()
    optimizer.step()


def test_a_step_that_moves_few_values_trains() -> None:
    model = Lookup()
    with trains(model):
        step(model)


def test_a_step_that_moves_few_values_after_a_load_trains() -> None:
    model = Lookup()
    other = {name: 2 * value for name, value in copy.deepcopy(model.state_dict()).items()}
    with trains(model):
        model.load_state_dict(other)
        step(model)


def test_few_values_that_are_put_back_are_undone() -> None:
    model = Lookup()
    before = model.table.detach().clone()

    def run() -> None:
        step(model)
        model.table.data.copy_(before)

    assert [*causes(broken(model, run))] == ["undone"]


def test_a_learning_rate_of_0_moves_no_values_however_few() -> None:
    model = Lookup()
    verdict = broken(model, lambda: step(model, lr=0.0))
    assert [*causes(verdict)] == ["learning-rate-0"]
    assert verdict.changes[0].text == (
        "did not move; SGD (group 0) stepped with lr 0 and a gradient of up to 2.0e+00"
    )


def test_noise_on_few_values_is_no_step() -> None:
    model = Lookup()

    def run() -> None:
        step(model, lr=0.0)
        with torch.no_grad():
            model.table[ROW, 1:] += 1

    assert [*causes(broken(model, run))] == ["in-place"]


def test_the_largest_gradient_is_told_wherever_it_is() -> None:
    model = nn.Linear(300, 1000, bias=False)
    mask = torch.ones(300)
    mask[7] = 50

    def run() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model(mask).sum().backward()
        optimizer.step()

    assert "a gradient of up to 5.0e+01" in broken(model, run).changes[0].text


def test_a_step_with_a_closure_that_moves_few_values_trains() -> None:
    model = Lookup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss.item()

    with trains(model):
        optimizer.step(closure)


def test_nan_that_was_there_before_and_after_is_no_move() -> None:
    model = Lookup()
    model.table.data[0] = float("nan")
    verdict = broken(model, lambda: step(model, lr=0.0))
    assert verdict.changes[0].text.startswith("did not move")


def test_a_step_in_half_precision_that_moves_few_values_trains() -> None:
    model = nn.Linear(300, 1000, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(100.0)
        model.weight[ROW, 1] = 0.0
    with trains(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        model(torch.ones(300, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    assert model.weight[ROW, 1] != 0
