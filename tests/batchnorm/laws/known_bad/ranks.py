"""Layers that synchronise over ranks: right ones, and some with one defect each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from tests.batchnorm.laws.known_bad.bases import column
from tests.batchnorm.laws.known_bad.registry import breaks


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


@breaks("synced_output")
class SyncsTheMeanAlone(Synced):
    """The variance is that of the rank's own values."""

    def var(self, values: Tensor, mean: Tensor, n: float) -> Tensor:
        return (values - column(mean, values)).square().mean(self.dims(values))


@breaks("synced_output")
class SyncsInFloat32(Synced):
    """Float64 statistics are exchanged in float32."""

    def add_up(self, values: Tensor) -> Tensor:
        return super().add_up(values.float()).to(values.dtype)


@breaks("synced_running_mean")
class TracksOwnMeans(Synced):
    """Each rank tracks the mean of its own values."""

    def track(self, mean: Tensor, var: Tensor, n: float, x: Tensor) -> None:
        super().track(x.detach().to(mean.dtype).mean(self.dims(x)), var, n, x)


@breaks("synced_running_var")
class UnbiasesByOwnCount(Synced):
    """running_var gets n/(n - 1) of the rank's own n."""

    def unbias(self, n: float, x: Tensor) -> float:
        own = self.count(x)
        return own / (own - 1) if own > 1 else 1.0


@breaks("synced_running_var")
class TracksBiasedVariance(Synced):
    """running_var gets the biased variance."""

    def unbias(self, n: float, x: Tensor) -> float:
        return 1.0


@breaks("synced_running_var")
class TracksOwnVariance(Synced):
    """Each rank tracks the mean over ranks of nothing but its own variance."""

    def track(self, mean: Tensor, var: Tensor, n: float, x: Tensor) -> None:
        super().track(mean, x.detach().to(mean.dtype).var(self.dims(x), correction=0), n, x)


@breaks("synced_cumulative_average")
class AveragesByRanks(Synced):
    """Its cumulative average counts a batch of all ranks as one for each."""

    def factor(self) -> float:
        if self.momentum is None:
            return 1 / (int(self.num_batches_tracked) * distributed.get_world_size(self.group()))
        return self.momentum


@breaks("synced_counter")
class CountsEachRank(Synced):
    """It counts the batch of each rank."""

    def track(self, mean: Tensor, var: Tensor, n: float, x: Tensor) -> None:
        super().track(mean, var, n, x)
        self.num_batches_tracked.add_(distributed.get_world_size(self.group()) - 1)


@breaks("synced_input_gradient")
class KeepsOwnGradients(Synced):
    """The statistics are constants of the others' losses: their gradients are not summed."""

    def add_up(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        distributed.all_reduce(total, group=self.group())
        return total + values - values.detach()


@breaks("synced_input_gradient")
class AveragesGradients(Synced):
    """The gradients through the statistics are averaged over the ranks, as DDP does it."""

    def add_up(self, values: Tensor) -> Tensor:
        size = distributed.get_world_size(self.group())
        total = super().add_up(values)
        return total.detach() + (total - total.detach()) / size


@breaks("synced_weight_gradient")
class SumsWeightGradients(Synced):
    """The weight's gradient is summed over the ranks already, and DDP averages it once more."""

    def affine_map(self, values: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if self.weight is not None and self.weight.requires_grad:
            y = super().affine_map(values, mean, var)
            total = self.add_up(self.weight)
            parts = (total - total.detach()) * 1.0
            xh = (values - column(mean, values)) * column((var + self.eps).rsqrt(), values)
            detached = xh.detach() * column(self.weight - self.weight.detach(), values)
            return y - detached + xh.detach() * column(parts, values)
        return super().affine_map(values, mean, var)


@breaks("synced_bias_gradient")
class SumsBiasGradients(Synced):
    """The bias' gradient is summed over the ranks already, and DDP averages it once more."""

    def affine_map(self, values: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        y = super().affine_map(values, mean, var)
        if self.bias is None or not self.bias.requires_grad:
            return y
        total = self.add_up(self.bias)
        moved = total - total.detach() - self.bias + self.bias.detach()
        return y + column(moved.to(y.dtype), y)


@breaks("synced_affine_off")
class NeedsItsWeight(Synced):
    """It has no path without a weight."""

    def affine_map(self, values: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if self.weight.shape != mean.shape:
            raise ValueError("a weight for each channel")
        return super().affine_map(values, mean, var)


@breaks("synced_offsets")
class SubtractsSquares(Synced):
    """The variance is avg(x^2) - mean^2."""

    def var(self, values: Tensor, mean: Tensor, n: float) -> Tensor:
        squares = self.add_up(values.square().sum(self.dims(values))) / n
        return squares - mean.square()


@breaks("synced_half_input")
class SyncsInHalf(Synced):
    """Half values are added up in half."""

    def forward(self, x: Tensor) -> Tensor:
        self.half = x.dtype in (torch.float16, torch.bfloat16) and x.dtype
        return super().forward(x)

    def add_up(self, values: Tensor) -> Tensor:
        if self.half:
            values = values.to(self.half).to(values.dtype)
        return super().add_up(values)


@breaks("synced_bit_for_bit")
class AddsInItsOwnOrder(Synced):
    """Each rank adds the others' sums to its own: they round differently."""

    def track(self, mean: Tensor, var: Tensor, n: float, x: Tensor) -> None:
        size, rank = (f(self.group()) for f in (distributed.get_world_size, distributed.get_rank))
        third = 1 / 3 if rank else 1 / 3 + 2.0**-25
        super().track(mean * 3 * third + 0 * size, var, n, x)


@breaks("synced_eval_alone")
class SyncsInEval(Synced):
    """In eval, too, the ranks wait for each other."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and distributed.is_initialized():
            distributed.barrier(group=self.group())
        return super().forward(x)


@breaks("synced_process_group")
class IgnoresItsGroup(Synced):
    """The whole world takes part."""

    def group(self) -> Any:
        return distributed.group.WORLD


@breaks("synced_process_group")
class CountsTheWorld(Synced):
    """The count is that of its own values times the number of all ranks."""

    def total_count(self, count: int, values: Tensor) -> float:
        of_group = super().total_count(count, values)
        size = distributed.get_world_size(self.group())
        return of_group * distributed.get_world_size() / size


@breaks("synced_unequal_counts")
class WeighsRanksEqually(Synced):
    """Every rank counts the same, whatever its number of values."""

    def mean(self, values: Tensor, n: float) -> Tensor:
        size = distributed.get_world_size(self.group())
        return self.add_up(values.sum(self.dims(values)) / max(self.count(values), 1)) / size


@breaks("synced_unequal_counts")
class TakesItsOwnCountForAll(Synced):
    """n is the rank's own number of values, times the number of ranks."""

    def total_count(self, count: int, values: Tensor) -> float:
        return float(count * distributed.get_world_size(self.group()))


@breaks("synced_empty_rank")
class SkipsEmptyBatches(Synced):
    """A rank without samples does not take part: the others wait for it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.numel() else x.clone()


@breaks("synced_empty_rank")
class RefusesEmptyBatches(Synced):
    """A rank without samples raises an error."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():
            raise ValueError("an empty batch")
        return super().forward(x)


@breaks("synced_empty_rank")
class DiesOfEmptyBatches(Synced):
    """A rank without samples crashes, as a kernel does that divides by zero."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():
            import os
            import signal

            os.kill(os.getpid(), signal.SIGFPE)
        return super().forward(x)


@breaks("synced_single_values")
class RefusesSingleValues(Synced):
    """One value for each channel is refused, though other ranks have more."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            raise ValueError("Expected more than 1 value per channel when training")
        return super().forward(x)
