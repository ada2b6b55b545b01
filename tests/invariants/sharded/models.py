"""A model with a frozen teacher and a student that trains, and what ranks do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


class Pair(nn.Module):
    """A teacher, and a student that learns on top of it."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.student = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def forward(self, batch: Tensor) -> Tensor:
        return self.student(self.teacher(batch))


def pair() -> Pair:
    """Return a model whose statistics are not the initial ones, with its teacher frozen."""
    torch.manual_seed(0)
    model = Pair()
    for _ in range(3):
        model(torch.randn(16, 3))
    model.teacher.requires_grad_(False)
    model.teacher.eval()
    return model


def optimizer_of(model: nn.Module) -> Optimizer:
    return AdamW([each for each in model.parameters() if each.requires_grad], lr=0.01)


def batch() -> Tensor:
    return torch.randn(8, 3)


def train(model: nn.Module, optimizer: Optimizer) -> None:
    model(batch()).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def train_with_eval_forgotten(model: nn.Module, optimizer: Optimizer) -> None:
    model.train()
    train(model, optimizer)


def run_backward_only(model: nn.Module, optimizer: Optimizer) -> None:
    model(batch()).sum().backward()


def evaluate(model: nn.Module, optimizer: Optimizer) -> None:
    model.eval()
    with torch.no_grad():
        model(batch())


Wrap = Callable[[Any], nn.Module]


def local(tensor: Any) -> Tensor:
    """Return what this rank holds of a tensor."""
    return getattr(tensor, "_local_tensor", tensor)
