"""A value for each channel, in a shape that fits a batch."""

from __future__ import annotations

from torch import Tensor


def column(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))
