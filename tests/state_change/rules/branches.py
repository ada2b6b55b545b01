"""Steps of a model with a frozen branch, and why it moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.frozen(batch))


def batch() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(batch()).square().mean().backward()
    optimizer.step()


def verdict_of(model: nn.Module, step: Callable[[], object], *modules: str) -> Verdict:
    with pytest.raises(FrozenStateChanged) as caught, frozen(model, *(modules or ("frozen",))):
        step()
    return caught.value.verdict


def the_cause(verdict: Verdict) -> Any:
    (cause,) = verdict.causes
    assert cause.tensors == verdict.changed_tensors
    return cause


def cause_of(model: nn.Module, step: Callable[[], object]) -> Any:
    return the_cause(verdict_of(model, step))
