"""What the tests of `bn_updates` share: batches, a model, train steps, and what a verdict says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import InvariantBroken, Verdict, bn_updates

UNCHECKED = "the values of the model were not checked against the reference"


def values(seed: int = 0, shape: tuple[int, ...] = (8, 3)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def broken(model: nn.Module, step: Callable[[], object], *modules: str, **options: Any) -> Verdict:
    with pytest.raises(InvariantBroken) as caught, bn_updates(model, *modules, **options):
        step()
    return caught.value.verdict


def told(verdict: Verdict) -> list[tuple[str, str]]:
    return [(change.name, change.text) for change in verdict.changes]


def causes(verdict: Verdict) -> list[str]:
    return [cause.name for cause in verdict.causes]


def train(model: nn.Module, *batches: Tensor, step: bool = True) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches:
        model(batch).square().mean().backward()
    if step:
        optimizer.step()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.bn(self.linear(batch)))
