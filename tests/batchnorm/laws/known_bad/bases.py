"""What known-bad layers are made of: right ones, in parts that a defect replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.batchnorm.laws.columns import column


class Composed(nn.BatchNorm2d):
    """A right BatchNorm of torch's operators, in parts that a defect can replace."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels")
        use_batch = self.training or self.running_mean is None
        updates = self.training and self.track_running_stats
        if updates:
            self.count()
        if not x.numel():
            return self.of_nothing(x)
        values = x if x.dtype == self.dtype(x) else x.to(self.dtype(x))
        if not use_batch:
            return self.affine_map(x, values, self.running_mean, self.running_var).to(x.dtype)
        if values.numel() == values.shape[1]:
            raise ValueError("Expected more than 1 value per channel when training")
        dims = [0, *range(2, x.dim())]
        mean = self.mean(values, dims)
        var = self.var(values, mean, dims)
        if updates:
            self.track(mean, var, values.numel() // values.shape[1])
        return self.affine_map(x, values, mean, var).to(x.dtype)

    def dtype(self, x: Tensor) -> torch.dtype:
        return torch.float64 if x.dtype == torch.float64 else torch.float32

    def count(self) -> None:
        self.num_batches_tracked.add_(1)

    def of_nothing(self, x: Tensor) -> Tensor:
        return x.clone()

    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return values.mean(dims)

    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        return (values - column(mean, values)).square().mean(dims)

    def factor(self) -> float:
        return 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum

    def unbias(self, n: int) -> float:
        return n / (n - 1)

    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        m = self.factor()
        with torch.no_grad():
            self.running_mean.mul_(1 - m).add_(m * mean)
            self.running_var.mul_(1 - m).add_(m * self.unbias(n) * var)

    def scale(self, var: Tensor) -> Tensor:
        return (var + self.eps).rsqrt()

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        wide = values.dtype
        y = (values - column(mean.to(wide), x)) * column(self.scale(var.to(wide)), x)
        if self.weight is not None:
            y = y * column(self.weight_for(x).to(wide), x)
        return y if self.bias is None else y + column(self.bias.to(wide), x)

    def weight_for(self, x: Tensor) -> Tensor:
        return self.weight


class UsesAnotherMomentum(nn.BatchNorm2d):
    """Run each forward with a momentum that a defect chooses."""

    def used(self) -> float | None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        momentum, self.momentum = self.momentum, self.used()
        try:
            return super().forward(x)
        finally:
            self.momentum = momentum


class _AtBackward(torch.autograd.Function):
    """Return its input; in backward, what a function makes of the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.change(grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, change: None) -> Tensor:
        return tangent.clone()


def at_backward(value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return _AtBackward.apply(value, change)


class ChangesItsGradient(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return at_backward(super().forward(x), self.change)

    def change(self, grad: Tensor) -> Tensor:
        raise NotImplementedError
