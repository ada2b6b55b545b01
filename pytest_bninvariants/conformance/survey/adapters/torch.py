"""Layers of torch that are made in another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def make_lazy(channels: int, *settings: Any, **named: Any) -> nn.Module:
    """Return a LazyBatchNorm2d that has seen a batch, and so is a BatchNorm2d."""
    layer = nn.LazyBatchNorm2d(*settings, **named).eval()
    layer(torch.zeros(2, channels, 1, 1))
    return layer.train()
