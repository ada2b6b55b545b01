"""What the tests of `trains` share: a model, its train step, and what a verdict says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import InvariantBroken, Verdict, trains


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.body(batch).relu())


def batch() -> Tensor:
    return torch.randn(8, 3)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(batch()).square().mean().backward()
    optimizer.step()


def broken(model: nn.Module, run: Callable[[], object], *names: str, **options: Any) -> Verdict:
    with pytest.raises(InvariantBroken) as caught, trains(model, *names, **options):
        run()
    return caught.value.verdict


def causes(verdict: Verdict) -> dict[str, tuple[str, ...]]:
    return {cause.name: cause.layers for cause in verdict.causes}
