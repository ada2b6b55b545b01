"""Layers of e3nn."""

from __future__ import annotations

from typing import Any

from e3nn.nn import BatchNorm
from torch import Tensor


class ScalarBatchNorm(BatchNorm):
    """An e3nn BatchNorm of scalars, which takes the channels in axis 1 instead of the last."""

    def __init__(self, channels: int, *settings: Any, **named: Any) -> None:
        super().__init__(f"{channels}x0e", *settings, **named)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
