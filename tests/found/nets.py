"""A net whose backbone is frozen as it should be, and the mark of a test that shows a fault."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, InvariantBroken

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x).mean((2, 3)))
        return logits


def frozen_net() -> Net:
    torch.manual_seed(0)
    net = Net().train()
    net(2 * IMAGES + 1)  # statistics that are not those of a new layer
    net.backbone.eval().requires_grad_(False)
    return net


def train_step(net: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net(IMAGES).square().mean().backward()
    optimizer.step()


def found_in(package: str, version: str) -> pytest.MarkDecorator:
    """Expect a fault in this version and in later ones, until one mends it."""
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        return pytest.mark.skip(reason=f"{package} is not installed")
    if Version(installed) < Version(version):
        return pytest.mark.skip(reason=f"tried on {package} {version}, and this is {installed}")
    return pytest.mark.xfail(strict=True, raises=(FrozenStateChanged, InvariantBroken))
