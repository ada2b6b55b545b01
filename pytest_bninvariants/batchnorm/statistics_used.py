"""Tell from a layer's output which statistics its own forward used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pytest_bninvariants.torch_internals.isolation import in_transform, undisturbed

StatisticsUsed = Literal["stored", "batch", "unknown"]
_SAMPLES = 8  # enough to tell; comparing all of a large batch would take long
_TOLERANCE = 0.02  # between two computations in half precision, or with another eps


def statistics_used(layer: nn.Module, x: Tensor | None, output: object) -> StatisticsUsed:
    """Tell what a BN layer normalised with, by normalising some samples in both ways.

    Args:
        layer: the layer, which has just run.
        x: what it was called with.
        output: what it returned.
    """
    mean, var = (getattr(layer, name, None) for name in ("running_mean", "running_var"))
    if x is None or mean is None or var is None or not isinstance(output, Tensor):
        return "unknown"
    if in_transform() or not all(map(_is_plain, (x, output, mean, var))):
        return "unknown"
    if x.shape != output.shape or _is_capturing(x):
        return "unknown"
    with undisturbed():
        try:
            if x.data_ptr() == output.data_ptr():  # it overwrote its input
                return "unknown"
            return _compare(layer, x.detach(), output.detach(), _MeanAndVariance(mean, var))
        except (RuntimeError, TypeError):  # types and shapes that no BatchNorm takes
            return "unknown"


class _MeanAndVariance(NamedTuple):
    mean: Tensor
    var: Tensor


def _compare(
    layer: nn.Module, x: Tensor, output: Tensor, stored: _MeanAndVariance
) -> StatisticsUsed:
    channels = stored.mean.numel()
    dims = [dim for dim in {1, x.dim() - 1} if x.dim() > 1 and x.shape[dim] == channels]
    if any(_is_normalised(layer, x, output, stored, dim) for dim in dims):
        return "stored"
    for dim in dims:
        for statistics in _batch_statistics(x, dim):
            if _is_normalised(layer, x, output, statistics, dim):
                return "batch"
    return "unknown"


def _batch_statistics(x: Tensor, dim: int) -> Iterator[_MeanAndVariance]:
    """Yield a batch's statistics, with its biased and with its unbiased variance."""
    others = [each for each in range(x.dim()) if each != dim]
    if x.numel() > x.shape[dim]:
        for correction in (0, 1):
            var, mean = torch.var_mean(x.float(), others, correction=correction)
            yield _MeanAndVariance(mean, var)


def _is_normalised(
    layer: nn.Module, x: Tensor, output: Tensor, statistics: _MeanAndVariance, dim: int
) -> bool:
    """Tell whether an output is an input, normalised with some statistics and a layer's weights."""
    shape = [-1 if each == dim else 1 for each in range(x.dim())]
    eps = getattr(layer, "eps", 0.0)
    mean, var = (each.float().view(shape) for each in statistics)
    expected = (x[:_SAMPLES].float() - mean) * (var + eps).rsqrt()
    weight, bias = (getattr(layer, name, None) for name in ("weight", "bias"))
    if weight is not None:
        expected = expected * weight.float().view(shape)
    if bias is not None:
        expected = expected + bias.float().view(shape)
    distance = (output[:_SAMPLES].float() - expected).abs().max()
    return bool(distance <= _TOLERANCE * expected.abs().max())


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor holds its values as they are."""
    return type(tensor) in (Tensor, nn.Parameter) and not (
        tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta
    )


def _is_capturing(x: Tensor) -> bool:
    """Tell whether a CUDA graph is being captured, in which no value can be read."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
