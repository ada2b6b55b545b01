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


@breaks("batch_sizes")
class LaunchesOneBlockPerSample(Composed):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 65535:
            raise RuntimeError("invalid configuration argument")
        return super().forward(x)


@breaks("channel_counts")
class LaunchesOneBlockPerChannel(Composed):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 65535:
            raise RuntimeError("invalid configuration argument")
        return super().forward(x)


@breaks("channel_counts")
class ForgetsTheTailOfChannelsLast(Composed):
    """Leave out channels past the last whole vector, where those of a position lie together."""

    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        mean, c = super().mean(values, dims), values.shape[1]
        tail = c % 4 if c > 4 and values.stride(1) == 1 and values.stride(3) == c else 0
        return torch.cat((mean[: c - tail], 0 * mean[c - tail :]))
