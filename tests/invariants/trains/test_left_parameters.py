"""Parameters that an optimizer with a gradient left as they were, or that had no values before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import InvariantHazard, trains
from tests.invariants.trains.steps import Net, batch, broken, causes, step
from tests.watching import watching


class Late(torch.optim.SGD):
    """An optimizer whose first step only looks at the gradients, as ADOPT's does."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 0.1) -> None:
        super().__init__(parameters, lr=lr)
        self.steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return None if self.steps == 1 else super().step(closure)


def test_an_optimizer_that_skips_its_first_step_is_told_as_that() -> None:
    net = Net()
    optimizer = Late(net.parameters())
    (cause,) = broken(net, lambda: step(net, optimizer)).causes
    assert cause.name == "skipped"
    assert "when Late stepped, which left them as they were" in cause.why
    net = Net()
    optimizer = Late(net.parameters())
    with watching(trains(net), layers=4):
        step(net, optimizer)
        step(net, optimizer)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_that_bfloat16_rounds_away_is_not_called_skipped(kind: Callable[..., Any]) -> None:
    net = Net().to(torch.bfloat16)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(64.0)
    optimizer = kind(net.parameters(), lr=1e-4)

    def guarded() -> None:
        net(torch.ones(8, 3, dtype=torch.bfloat16)).mean().backward()
        optimizer.step()

    assert list(causes(broken(net, guarded))) == ["rounded-away"]


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(1))


def test_a_bias_that_begins_in_the_block_may_stand_still_before_a_batch_norm() -> None:
    model = lazy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def guarded() -> None:
        with watching(trains(model), layers=7):
            step(model, optimizer)

    with pytest.warns(InvariantHazard, match=r"0\.bias: did not move: .* bias before a BatchNorm"):
        guarded()


def test_a_lazy_parameter_that_only_began_did_not_train() -> None:
    model = lazy()
    optimizer = torch.optim.SGD([*model.parameters()][:4], lr=0.1)
    assert causes(broken(model, lambda: step(model, optimizer), buffers=False)) == {
        "not-in-optimizer": ("2.weight", "2.bias")
    }
    model = lazy()
    assert causes(broken(model, lambda: model(batch()), buffers=False)) == {
        "not-in-optimizer": tuple(name for name, _ in model.named_parameters())
    }
