"""Layers that are wrong without parameters or statistics, or when a setting changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.batchnorm.laws.columns import column
from tests.batchnorm.laws.known_bad.bases import Composed, UsesAnotherMomentum
from tests.batchnorm.laws.known_bad.registry import breaks


@breaks("affine_off")
class AffineOffKeepsAWeight(Composed):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.weight is None:
            self.weight = nn.Parameter(torch.ones(self.num_features))
            self.bias = nn.Parameter(torch.zeros(self.num_features))


@breaks("tracking_off")
class AlwaysTracks(Composed):
    def __init__(self, *args: Any, track_running_stats: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


@breaks("tracking_switched_off")
class TracksUnasked(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        super().track(mean, var, n)

    def forward(self, x: Tensor) -> Tensor:
        asked, self.track_running_stats = self.track_running_stats, self.running_mean is not None
        try:
            return super().forward(x)
        finally:
            self.track_running_stats = asked


@breaks("settings_are_read")
class ReadsItsSettingsOnce(Composed):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.first_momentum = self.momentum

    def factor(self) -> float:
        momentum, self.momentum = self.momentum, self.first_momentum
        try:
            return super().factor()
        finally:
            self.momentum = momentum


@breaks("settings_are_read")
class AveragesAsConstructed(UsesAnotherMomentum):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.averages = self.momentum is None

    def used(self) -> float | None:
        return None if self.averages else self.momentum


@breaks("affine_off")
class WeightNeedsABias(Composed):
    def __init__(self, *args: Any, bias: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not bias:
            self.bias = None

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        if self.bias is not None:
            return super().affine_map(x, values, mean, var)
        return functional.batch_norm(x, mean, var, eps=self.eps) + 0 * column(self.weight, x)


@breaks("tracking_switched_off")
class NeedsItsStatisticsInEval(Composed):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.num_batches_tracked is not None:
            x = x + 0 * column(self.running_mean, x)
        return super().forward(x)


@breaks("affine_off", "tracking_off")
class NeedsAWeightInHalf(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None and x.dtype in (torch.float16, torch.bfloat16):
            raise RuntimeError("expected scalar type Half but found Float")
        return super().forward(x)


@breaks("tracking_off")
class NeedsItsCounterToAverage(Composed):
    def count_of(self) -> int:
        return int(self.num_batches_tracked)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.momentum is None:
            self.count_of()
        return super().forward(x)


@breaks("affine_off")
class BiasNeedsAWeight(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        y = super().affine_map(x, values, mean, var)
        alone = self.weight is None and self.bias is not None
        return y - column(self.bias, x) if alone else y


@breaks("tracking_off")
class UnbiasesWithoutGradients(Composed):
    """Take another kernel where nothing needs a gradient, which divides by n - 1."""

    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        var = super().var(values, mean, dims)
        if torch.is_grad_enabled() or self.running_mean is not None:
            return var
        n = values.numel() // values.shape[1]
        return var * n / (n - 1)
