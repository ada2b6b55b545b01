"""Layers whose outputs or statistics are wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.batchnorm.laws.known_bad.bases import Composed, UsesAnotherMomentum
from tests.batchnorm.laws.known_bad.registry import breaks


@breaks("training_output")
class NormalisesWithUnbiasedVariance(Composed):
    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        n = values.numel() // values.shape[1]
        return super().var(values, mean, dims) * n / (n - 1)

    def unbias(self, n: int) -> float:
        return 1


@breaks("training_output", "running_var")
class OnePassVariance(Composed):
    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        return (values.square().mean(dims) - mean.square()).clamp(min=0)


@breaks("eval_output", "frozen_output")
class EpsOutsideTheRootInEval(Composed):
    def scale(self, var: Tensor) -> Tensor:
        return super().scale(var) if self.training else 1 / (var.sqrt() + self.eps)


@breaks("frozen_output", "eval_follows_state")
class CachesItsScale(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        if not self.training:
            if not hasattr(self, "cached"):
                self.cached = (mean.clone(), var.clone())
            mean, var = self.cached
        return super().affine_map(x, values, mean, var)


@breaks("eval_output_after_training")
class RemembersTheFirstEval(CachesItsScale):
    pass


@breaks("running_mean")
class MomentumWeighsTheOldMean(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        old, m = self.running_mean.clone(), self.factor()
        super().track(mean, var, n)
        with torch.no_grad():
            self.running_mean.copy_(m * old + (1 - m) * mean)


@breaks("running_var")
class BiasedRunningVariance(Composed):
    def unbias(self, n: int) -> float:
        return 1


@breaks("momentum")
class ZeroMomentumIsTheDefault(Composed):
    def factor(self) -> float:
        return super().factor() or 0.1


@breaks("cumulative_average")
class NoneMomentumIsTheDefault(Composed):
    def factor(self) -> float:
        return self.momentum or 0.1 if self.momentum is None else self.momentum


@breaks("cumulative_average")
class CumulativeAverageIsLate(Composed):
    def factor(self) -> float:
        return 1 / (int(self.num_batches_tracked) + 1) if self.momentum is None else self.momentum


@breaks("counter")
class CountsTwice(Composed):
    def count(self) -> None:
        self.num_batches_tracked.add_(2)


@breaks("counter")
class CountsInFloat(Composed):
    def count(self) -> None:
        self.num_batches_tracked.copy_((self.num_batches_tracked.float() + 1).long())


@breaks("eval_keeps_state")
class CountsInEval(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        if not self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        return super().affine_map(x, values, mean, var)


@breaks("eval_batch_mates")
class LooksAtBatchMates(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        y = super().affine_map(x, values, mean, var)
        return y if self.training else y + 1e-4 * values.mean()


@breaks("scaling", "training_output")
class EpsIsSquaredAway(Composed):
    def scale(self, var: Tensor) -> Tensor:
        return 1 / (var.sqrt() + self.eps)


@breaks("shifting")
class NormalisesInHalf(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return values.half().mean(dims).to(values.dtype)


@breaks("eval_output")
class IgnoresEvalMode(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            return super().forward(x)
        return functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


@breaks("many_batches")
class RestsAtTheHundredth(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        if int(self.num_batches_tracked) % 100:
            super().track(mean, var, n)


@breaks("training_output")
class CountsNonzeroValues(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return values.sum(dims) / (values != 0).sum(dims).clamp(min=1)


@breaks("momentum")
class WholeMomentumIsNone(UsesAnotherMomentum):
    def used(self) -> float | None:
        return self.momentum if isinstance(self.momentum, float) else None


@breaks("momentum")
class ClampsItsMomentum(UsesAnotherMomentum):
    def used(self) -> float | None:
        return self.momentum and min(max(self.momentum, 0.0), 1.0)


@breaks("eps_values")
class FloorsItsVariance(Composed):
    def scale(self, var: Tensor) -> Tensor:
        return (var + self.eps).clamp(min=1e-12).rsqrt()


@breaks("constant_channels")
class TakesTheRootOfTheVariance(Composed):
    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        return super().var(values, mean, dims).sqrt().square()


@breaks("eps_values")
class TakesNoEpsForTheDefault(Composed):
    def scale(self, var: Tensor) -> Tensor:
        return (var + (self.eps or 1e-5)).rsqrt()


@breaks("running_mean")
class TracksOneBatchLate(Composed):
    waiting: tuple[Tensor, Tensor, int] | None = None

    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        late, self.waiting = self.waiting, (mean.detach(), var.detach(), n)
        if late is not None:
            super().track(*late)
