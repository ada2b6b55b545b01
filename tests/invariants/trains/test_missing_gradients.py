"""A parameter without a gradient: whether it had one before, and what multiplies it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import trains
from pytest_bninvariants.verdict import Cause
from tests.invariants.trains.steps import Net, batch, broken, causes, step
from tests.watching import watching


@pytest.mark.parametrize("to_none", [True, False])
def test_a_gradient_that_was_cleared_before_the_step_is_told(*, to_none: bool) -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def guarded() -> None:
        for _ in range(2):
            net(batch()).square().mean().backward()
            optimizer.zero_grad(set_to_none=to_none)
            optimizer.step()

    (cause,) = broken(net, guarded).causes
    assert cause.name == ("no-gradient" if to_none else "zero-gradient")
    assert "had a gradient after backward(), and " in cause.why
    assert cause.fix == "call zero_grad() before backward() or after step(), and not in between"


@pytest.mark.parametrize("to_none", [True, False])
def test_a_gradient_of_an_earlier_step_that_was_cleared_in_time_is_no_cause(
    *, to_none: bool
) -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step(net, optimizer)

    def guarded() -> None:
        optimizer.zero_grad(set_to_none=to_none)
        net.head(net.body(batch()).relu().detach()).square().mean().backward()
        optimizer.step()

    (cause,) = broken(net, guarded).causes
    assert cause.name == ("no-gradient" if to_none else "zero-gradient")
    assert cause.layers == ("body.weight", "body.bias")
    assert "zero_grad() ran in between" not in cause.why


def test_a_step_without_any_backward_is_not_told_as_a_cleared_gradient() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step(net, optimizer)

    def guarded() -> None:
        optimizer.zero_grad()
        net(batch())
        optimizer.step()

    (cause,) = broken(net, guarded).causes
    assert cause.name == "no-gradient"
    assert "zero_grad() ran in between" not in cause.why


class Adapted(nn.Module):
    """A layer with a product of two factors beside it, as LoRA has them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 3).requires_grad_(False)
        self.down, self.up = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)
        self.head = nn.Linear(3, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.base(x) + self.up(self.down(x)))
        return output


def cause_of_one_step(model: nn.Module) -> Cause:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    verdict = broken(model, lambda: step(model, optimizer))
    assert causes(verdict) == {"zero-gradient": ("down.weight",)}
    return verdict.causes[0]


def test_what_zeros_multiply_has_its_gradient_in_the_second_step() -> None:
    model = Adapted()
    cause = cause_of_one_step(model)
    assert "up.weight was all zeros until then" in cause.why
    assert "head.bias" not in cause.why
    assert "put two steps into the block" in cause.fix
    model = Adapted()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(trains(model), layers=4):
        step(model, optimizer)
        step(model, optimizer)


def test_zeros_that_do_not_train_are_no_reason_to_wait() -> None:
    model = Adapted()
    model.up.requires_grad_(False)
    cause = cause_of_one_step(model)
    assert "all zeros until then" not in cause.why
    assert "two steps" not in cause.fix
