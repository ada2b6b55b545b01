"""Right layers that synchronise over ranks, in parts that a defect can replace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from tests.batchnorm.laws.columns import column


class SumOverRanks(torch.autograd.Function):
    """Add up over the ranks of a group, in forward and in backward."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        ctx.group, total = group, own.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return SumOverRanks.apply(grads[0], ctx.group), None


class Synced(nn.modules.batchnorm._BatchNorm):
    """A right one, on any device: the ranks add up their values, then squared deviations."""

    def __init__(self, num_features: int, *args: Any, process_group: Any = None, **kwargs: Any):
        super().__init__(num_features, *args, **kwargs)
        self.process_group = process_group

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError("expected at least 2 dimensions")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        values = x.to(wide)
        n = self.total_count(self.count(x), values)
        mean = self.mean(values, n)
        var = self.var(values, mean, n)
        if self.track_running_stats:
            self.track(mean.detach(), var.detach(), n, x)
        return self.affine_map(values, mean, var).to(x.dtype)

    def group(self) -> Any:
        return self.process_group or distributed.group.WORLD

    def add_up(self, values: Tensor) -> Tensor:
        result: Tensor = SumOverRanks.apply(values, self.group())
        return result

    def count(self, x: Tensor) -> int:
        return x.numel() // x.shape[1]

    def total_count(self, count: int, values: Tensor) -> float:
        total = torch.tensor(float(count), dtype=torch.float64, device=values.device)
        distributed.all_reduce(total, group=self.group())
        return float(total)

    def dims(self, values: Tensor) -> list[int]:
        return [0, *range(2, values.dim())]

    def mean(self, values: Tensor, n: float) -> Tensor:
        return self.add_up(values.sum(self.dims(values))) / n

    def var(self, values: Tensor, mean: Tensor, n: float) -> Tensor:
        squares = (values - column(mean, values)).square().sum(self.dims(values))
        return self.add_up(squares) / n

    def unbias(self, n: float, x: Tensor) -> float:
        return n / (n - 1)

    def factor(self) -> float:
        return 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum

    def track(self, mean: Tensor, var: Tensor, n: float, x: Tensor) -> None:
        m = self.factor()
        self.running_mean.mul_(1 - m).add_(m * mean)
        self.running_var.mul_(1 - m).add_(m * self.unbias(n, x) * var)

    def affine_map(self, values: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        y = (values - column(mean, values)) * column((var + self.eps).rsqrt(), values)
        if self.weight is not None:
            y = y * column(self.weight.to(values.dtype), values)
        return y if self.bias is None else y + column(self.bias.to(values.dtype), values)


class SyncedByScales(Synced):
    """A right one that does as torch's own on CUDA: the ranks tell their mean and their scale."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
        return _ByScales.apply(x, self.weight, self.bias, self)  # type: ignore[no-any-return]

    def combined(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and variance of all ranks' values, and how many there are."""
        dims, n = self.dims(values), self.count(values)
        own = torch.zeros(3, values.shape[1], dtype=values.dtype, device=values.device)
        if n:
            own[0] = values.mean(dims)
            own[1] = (values.var(dims, correction=0) + self.eps).rsqrt()
        own[2] = n
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size(self.group()))]
        distributed.all_gather(parts, own, group=self.group())
        mean, squares, count = parts[0][0], torch.zeros_like(own[0]), torch.zeros_like(own[0])
        for other, scale, more in parts:
            if more[0]:
                var, both = 1 / scale.square() - self.eps, count + more
                squares = squares + more * var + (other - mean).square() * count * more / both
                mean, count = (count * mean + more * other) / both, both
        return mean, squares / count, count


class _ByScales(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, layer: SyncedByScales) -> Tensor:
        values = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        mean, var, count = layer.combined(values)
        if layer.track_running_stats:
            layer.track(mean, var, float(count[0]), x)
        ctx.save_for_backward(values, weight, mean, var)
        ctx.layer, ctx.n, ctx.dtype = layer, float(count[0]), x.dtype
        return layer.affine_map(values, mean, var).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, var = ctx.saved_tensors
        g, layer, dims = grads[0].to(values.dtype), ctx.layer, ctx.layer.dims(values)
        scale = (var + layer.eps).rsqrt()
        xh = (values - column(mean, values)) * column(scale, values)
        sums = torch.stack([g.sum(dims), (g * xh).sum(dims)])
        own = sums.clone()
        of_input = None
        if ctx.needs_input_grad[0]:
            distributed.all_reduce(sums, group=layer.group())
            of_input = g - column(sums[0] / ctx.n, g) - xh * column(sums[1] / ctx.n, g)
            of_input = of_input * column(scale if weight is None else scale * weight, g)
            of_input = of_input.to(ctx.dtype)
        of_weight = own[1] if ctx.needs_input_grad[1] else None
        return of_input, of_weight, own[0] if ctx.needs_input_grad[2] else None, None
