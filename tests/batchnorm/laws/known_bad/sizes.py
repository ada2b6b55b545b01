"""Layers that are wrong at one size."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.batchnorm.laws.known_bad.bases import Composed
from tests.batchnorm.laws.known_bad.registry import breaks


@breaks("batch_sizes")
class ThirtySevenIsSpecial(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return super().mean(values[:-1] if len(values) == 37 else values, dims)


@breaks("channel_counts")
class ForgetsChannelsPastTheVector(Composed):
    def scale(self, var: Tensor) -> Tensor:
        scale = super().scale(var)
        return scale if len(var) < 33 else torch.cat((scale[:32], scale[:1], scale[33:]))


@breaks("spatial_sizes")
class ForgetsTheLastPosition(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return super().mean(values[..., :-1] if values.shape[-1] == 65 else values, dims)


@breaks("spatial_sizes")
class CountsInItsOwnDtype(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        count = torch.tensor(n, dtype=self.running_var.dtype)
        super().track(mean, var * (count / count), n)
