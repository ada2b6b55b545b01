"""Layers of spikingjelly whose input has an axis of time before the others."""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based.layer import ThresholdDependentBatchNorm2d
from torch import Tensor


class OneStep2d(ThresholdDependentBatchNorm2d):
    """A ThresholdDependentBatchNorm2d with alpha=1 and v_th=1, on one step of time."""

    def __init__(self, *settings: Any, **named: Any) -> None:
        super().__init__(1.0, 1.0, *settings, **named)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch."""
        return super().forward(x[None])[0]
