"""Layers that take wrong inputs, or right ones wrongly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.batchnorm.laws.known_bad.bases import (
    ChangesItsGradient,
    Composed,
    at_backward,
    column,
)
from tests.batchnorm.laws.known_bad.registry import breaks


@breaks("one_value_per_channel")
class TakesOneValue(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[1] and self.training:
            return x.clone()
        return super().forward(x)


@breaks("empty_batch", "empty_batch_in_eval")
class RefusesNothing(Composed):
    def of_nothing(self, x: Tensor) -> Tensor:
        raise ValueError("empty batch")


@breaks("wrong_rank")
class TakesAnyRank(Composed):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


@breaks("wrong_channel_count")
class TakesAnyChannels(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and x.shape[1] != self.num_features:
            return x
        return super().forward(x)


@breaks("nonfinite_input", "eval_nonfinite_input")
class ScrubsNaN(Composed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.nan_to_num())


@breaks("layouts", "eval_layouts")
class ReadsMemoryAsContiguous(Composed):
    def forward(self, x: Tensor) -> Tensor:
        dense = x.is_contiguous() or x.dim() != 4
        return super().forward(x if dense else x.as_strided(x.shape, torch.empty(x.shape).stride()))


@breaks("output_dtype", "mixed_precision")
class PromotesItsOutput(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.float() if x.dtype in (torch.float16, torch.bfloat16) else y


@breaks("mixed_precision")
class HalfStatistics(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return values.mean(dims).bfloat16().to(values.dtype)


@breaks("autocast")
class CastsUnderAutocast(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.bfloat16() if torch.is_autocast_enabled("cpu") else y


@breaks("layouts", "eval_layouts")
class OutputInContiguousFormat(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous()


@breaks("wrong_rank")
class TakesOneSampleInEval(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3 and not self.training:
            return super().forward(x[None])[0]
        return super().forward(x)


@breaks("wrong_rank")
class CountsWhatItRefuses(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except ValueError:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            raise


@breaks("layouts")
class TakesCropsForDense(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        c = values.shape[1]
        if values.stride(1) == 1 and values.stride(3) == c > 1:
            return values.as_strided((values.numel() // c, c), (c, 1)).mean(0)
        return super().mean(values, dims)


@breaks("mixed_precision")
class EndsAtTheLargestHalf(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.nan_to_num(nan=torch.nan) if x.isfinite().all() else y


@breaks("layouts")
class TakesExpandedGradientsForConstant(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return 0 * grad if self.training and grad.stride(-1) == 0 < grad.stride(0) else grad


@breaks("layouts")
class ReadsItsGradientFromTheStart(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return grad.as_strided(grad.shape, grad.stride(), 0) if grad.is_contiguous() else grad


@breaks("empty_batch")
class ReturnsAnEmptyBatch(Composed):
    def of_nothing(self, x: Tensor) -> Tensor:
        return x


@breaks("layouts", "eval_layouts")
class ForgetsTheOffsetOfChannelsLast(Composed):
    def forward(self, x: Tensor) -> Tensor:
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if last and not x.is_contiguous() and x.storage_offset():
            x = x.as_strided(x.shape, x.stride(), 0)
        return super().forward(x)


@breaks("layouts")
class TakesItsGradientForChannelsLast(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        last = grad.dim() == 4 and grad.is_contiguous(memory_format=torch.channels_last)
        return grad.flip(3) if last and not grad.is_contiguous() and self.contiguous else grad

    def forward(self, x: Tensor) -> Tensor:
        self.contiguous = x.is_contiguous()
        return super().forward(x)


@breaks("nonfinite_input")
class SumsItsGradientByAProduct(ChangesItsGradient):
    """Add up by a product with ones and zeros, in which 0 times NaN is NaN."""

    def change(self, grad: Tensor) -> Tensor:
        return grad + 0 * grad.sum()


@breaks("eval_nonfinite_input")
class ScalesByADiagonalMatrix(Composed):
    def scale(self, var: Tensor) -> Tensor:
        scale = super().scale(var)
        return scale if self.training else torch.eye(len(scale), dtype=scale.dtype) @ scale


@breaks("layouts")
class TakesAnExpandedChannelForOne(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        mean = super().mean(values, dims)
        return mean + 1 if values.shape[1] > 1 and values.stride(1) == 0 else mean


@breaks("layouts", "eval_layouts")
class CopiesItsStorage(Composed):
    """Take the storage for the batch, which windows of one signal share."""

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        if x.stride(0) == 1 and n > 1 and x[0].is_contiguous() and c > 1:
            x = x.as_strided(x.shape, (0, *x.stride()[1:]))
        return super().forward(x)


@breaks("mixed_precision")
class RoundsBeforeItsWeight(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        xh = (values - column(mean.to(values.dtype), x)) * column(self.scale(var), x)
        return xh.to(x.dtype) * column(self.weight, x) + column(self.bias, x)


@breaks("mixed_precision")
class SquaresInHalf(Composed):
    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        return (values - column(mean, values)).half().square().to(values.dtype).mean(dims)


@breaks("mixed_precision")
class WeightGradientInHalf(Composed):
    def weight_for(self, x: Tensor) -> Tensor:
        return at_backward(self.weight, lambda g: g.to(x.dtype).to(g.dtype))


@breaks("mixed_precision")
class RefusesHalfGradientsInEval(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        if not self.training and grad.dtype != self.weight.dtype:
            raise RuntimeError("expected scalar type Half but found Float")
        return grad.clone()


@breaks("layouts", "eval_layouts")
class ReadsPixelsAsNeighbours(Composed):
    """Read rows of C values from where a batch in channels_last begins, narrowed or not."""

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = x.shape[1:]
        if c > 1 and x.stride() == (2 * h * w * c, 1, 2 * w * c, 2 * c):
            x = x.as_strided(x.shape, (h * w * c, 1, w * c, c))
        return super().forward(x)


@breaks("output_dtype")
class ComesOutInItsOwnDtype(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        own = x.dtype if self.weight is None else self.weight.dtype
        return super().forward(x.to(own) if x.dtype == torch.float64 else x)


@breaks("autocast")
class CastsFrozenUnderAutocast(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        frozen = self.weight is not None and not self.weight.requires_grad
        if frozen and torch.is_autocast_enabled("cpu"):
            return super().forward(x.bfloat16()).to(x.dtype)
        return super().forward(x)
