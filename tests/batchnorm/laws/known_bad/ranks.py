"""Layers that synchronise over ranks, with one defect each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from tests.batchnorm.laws.columns import column
from tests.batchnorm.laws.known_bad.registry import breaks
from tests.batchnorm.laws.synchronising import Synced


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


@breaks("synced_large_shards")
class CountsInHalf(Synced):
    """The count is exchanged in half, which holds no odd number above 2048."""

    def total_count(self, count: int, values: Tensor) -> float:
        return super().total_count(int(torch.tensor(float(count)).half()), values)


@breaks("synced_tracking_off")
class SyncsWhatItTracks(Synced):
    """Without running statistics it takes the plain path."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.track_running_stats else self.plain(x)

    def plain(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, True, 0, self.eps)


@breaks("synced_no_grad")
class SyncsWithGradients(Synced):
    """Under no_grad each rank is alone."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self.training:
            return super().forward(x)
        return nn.modules.batchnorm._BatchNorm.forward(self, x)


class _KeepsItsScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        calls, ctx.layer.calls = ctx.layer.calls, 1
        return grads[0] * calls, None


@breaks("synced_several_calls")
class KeepsOneCall(Synced):
    """What backward needs is kept on the layer: a second call overwrites it."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return _KeepsItsScale.apply(super().forward(x), self)  # type: ignore[no-any-return]


@breaks("synced_buffers")
class ReplacesItsBuffers(Synced):
    """It puts new tensors in the place of its buffers: those that DDP broadcasts stay behind."""

    def track(self, mean: Tensor, var: Tensor, n: float, x: Tensor) -> None:
        self.running_mean, self.running_var = self.running_mean.clone(), self.running_var.clone()
        super().track(mean, var, n, x)


@breaks("synced_buffers")
class TracksTheGraph(Synced):
    """Its running mean keeps the graph of every step."""

    def track(self, mean: Tensor, var: Tensor, n: float, x: Tensor) -> None:
        super().track(mean, var, n, x)
        self.running_mean = self.running_mean + 0 * x.mean(self.dims(x)).float()


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
