"""Models and steps on the simulated device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DEVICE = "simdev"
TARGETS = (0, 1, 2, 0, 1, 2, 0, 1)
MIB = 1 << 20


def small_model(device: str = DEVICE) -> nn.Sequential:
    """Return a model with two BN layers, for inputs (N, 5)."""
    first = (nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).to(device)


def deep_model(layers: int) -> nn.Sequential:
    """Return a model with so many BN layers, for inputs (N, 6)."""
    blocks = (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(layers))
    return nn.Sequential(*blocks, nn.Linear(6, 3)).to(DEVICE)


def large_model() -> nn.Sequential:
    """Return a model of 30 MB, whose largest tensor has 23 MB, for inputs (N, 5)."""
    wide = nn.Linear(300_000, 20, bias=False)
    return nn.Sequential(nn.Linear(5, 300_000), wide, nn.BatchNorm1d(20)).to(DEVICE).eval()


def batch(features: int = 5, device: str = DEVICE) -> Tensor:
    """Return a batch of eight, (8, features)."""
    return torch.randn(8, features).to(device)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    """Run one step of classification."""
    optimizer.zero_grad()
    functional.cross_entropy(model(x), torch.tensor(TARGETS).to(x.device)).backward()
    optimizer.step()


def sgd(model: nn.Module, **options: float) -> torch.optim.SGD:
    """Return an optimizer of all parameters."""
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})
