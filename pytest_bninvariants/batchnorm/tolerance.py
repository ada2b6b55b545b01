"""How far off a correct BatchNorm may be: bounds that follow from the arithmetic and the data.

Nothing here is tuned: docs/tolerance.md derives each bound, and each number in it. All tensors are
float64: rows (C, n) for a batch, and vectors (C,) with a value per channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import UNIT, Arithmetic, gamma
from pytest_bninvariants.batchnorm.reference import BatchNormGradients, Statistics


class NormalisationBounds(NamedTuple):
    """Bounds of what depends on a batch's statistics.

    Args:
        mean: of the mean, shape (C,).
        var: of the biased variance, shape (C,).
        scale: of (var + eps)^-1/2, relative, shape (C,).
        posed: whether the variance is known well enough for a bound of the output, shape (C,).
    """

    mean: Tensor
    var: Tensor
    scale: Tensor
    posed: Tensor


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """How a layer normalises a batch: the true numbers, and how far off its own may be.

    Args:
        values: the input, rows (C, n).
        statistics: the true ones, shape (C,).
        errors: the bounds of the layer's statistics, shape (C,).
        eps: the layer's.
        weight: shape (C,).
        bias: shape (C,).
        from_batch: whether the statistics are the batch's.
        depth: of a channel's sums, see `sum_depth`.
        arithmetic: the layer's.
    """

    values: Tensor
    statistics: Statistics
    errors: Statistics
    eps: float
    weight: Tensor
    bias: Tensor
    from_batch: bool
    depth: int
    arithmetic: Arithmetic

    @cached_property
    def bounds(self) -> NormalisationBounds:
        """Return the bounds of what the batch is normalised with."""
        return normalisation_bounds(self.statistics, self.errors, self.eps, self.arithmetic)

    @cached_property
    def scale(self) -> Tensor:
        """Return r = (var + eps)^-1/2, shape (C,)."""
        return (self.statistics.var + self.eps).rsqrt()

    @cached_property
    def magnitude(self) -> Tensor:
        """Return |x| + |mean|, rows (C, n): the size that rounding x and mean apart depends on."""
        return self.values.abs() + self.statistics.mean.abs()[:, None]

    @property
    def sum_error(self) -> float:
        """Return G, the relative error of a channel's sums."""
        return gamma(self.depth, self.arithmetic.sum_unit)


def statistics_bounds(values: Tensor, true: Statistics, depth: int, a: Arithmetic) -> Statistics:
    """Return bounds of a batch's mean and biased variance.

    Args:
        values: rows (C, n).
        true: their statistics.
        depth: of their sums, see `sum_depth`.
        a: the layer's arithmetic.
    """
    return bounds_by_magnitude(values.abs().mean(1), values.shape[1], true, depth, a)


def bounds_by_magnitude(
    magnitude: Tensor, count: int, true: Statistics, depth: int, a: Arithmetic
) -> Statistics:
    """Return bounds of a batch's mean and biased variance.

    Args:
        magnitude: the mean of the absolute values of each channel, shape (C,).
        count: how many values each channel has.
        true: their statistics.
        depth: of their sums, see `sum_depth`.
        a: the layer's arithmetic.
    """
    g = gamma(depth, a.sum_unit)
    if math.isinf(g):
        return Statistics(_unbounded(true.mean), _unbounded(true.var))
    mean = g * magnitude + a.gamma(2) * true.mean.abs()
    var = (g + a.gamma(4)) * (true.var + mean.square()) + mean.square()
    # Welford's update is off by gamma(h) kappa var, kappa^2 = 1 + mean^2 / var
    var = var + g * (true.var * (true.var + true.mean.square())).sqrt()
    if a.operations is torch.float16:  # torch 2.4 keeps the sum of squares in it: it may overflow
        squares = count * true.var
        var = torch.where(2 * squares > torch.finfo(torch.float16).max, _unbounded(var), var)
    return Statistics(mean, var)


def combining_error(true: Statistics, eps: float, depth: int, a: Arithmetic) -> Tensor:
    """Return how far off a variance is, besides, that is combined from those of ranks, shape (C,).

    The squares of the distances between the ranks' means enter it, and a rank may tell the scale
    (var + eps)^-1/2 in the place of its variance: docs/tolerance.md, "Over several ranks".

    Args:
        true: the statistics of the whole batch.
        eps: the layer's.
        depth: of a channel's sums over all ranks.
        a: the layer's arithmetic.
    """
    g = gamma(depth, a.sum_unit)
    between = 2 * (g + a.gamma(2)) * (true.var * (true.var + true.mean.square())).sqrt()
    return between + a.gamma(8) * (true.var + eps)


def sums_of_squares_error(true: Statistics, depth: int, a: Arithmetic) -> Tensor:
    """Return how far off avg(x^2) - mean^2 is as a variance, shape (C,); see `combining_error`."""
    return (3 * gamma(depth, a.sum_unit) + a.gamma(8)) * (true.var + true.mean.square())


def _unbounded(value: Tensor) -> Tensor:
    """Return infinite bounds; computing them as an infinite gamma times 0 would give NaN."""
    return torch.full_like(value, math.inf)


def normalisation_bounds(
    true: Statistics, errors: Statistics, eps: float, a: Arithmetic
) -> NormalisationBounds:
    """Return what errors of the statistics make of the scale (var + eps)^-1/2.

    Where the variance may be off by half of var + eps and more, nothing bounds the output: the
    channel is ill-posed.
    """
    total = true.var + eps
    posed = errors.var < total / 2
    gap = torch.where(posed, total - errors.var, torch.ones_like(total))
    scale = errors.var / (2 * gap) + a.gamma(3)
    return NormalisationBounds(errors.mean, errors.var, scale, posed)


def output_bound(batch: Normalisation, y: Tensor) -> Tensor:
    """Return the bound of the output, rows (C, n); it covers (x - mean) r w + b and x s + t alike.

    Args:
        batch: how the layer normalises it.
        y: the true output, rows (C, n).
    """
    a, bounds, mean = batch.arithmetic, batch.bounds, batch.statistics.mean
    scale = batch.weight.abs() * batch.scale
    reached = scale * (1 + bounds.scale) * (1 + a.gamma(4))
    near = bounds.mean[:, None] + a.gamma(3) * batch.magnitude
    far = (batch.values - mean[:, None]).abs() * (scale * (bounds.scale + a.gamma(4)))[:, None]
    bound = reached[:, None] * near + far + (a.gamma(3) * batch.bias.abs())[:, None]
    bound = bound + a.unit * y.abs() + a.storing_error(y, a.input)
    bound = bound + a.underflow_error(batch.scale, batch.weight)[:, None]
    return a.with_reference_error(bound).masked_fill(~bounds.posed[:, None], math.inf)


def mixing_error(a: Arithmetic) -> float:
    """Return the relative error of mixing a batch into a running statistic.

    Args:
        a: the layer's arithmetic.
    """
    return gamma(5, max(a.unit, UNIT[a.state]))


def running_bound(
    old: Tensor,
    old_bound: Tensor,
    new: Tensor,
    batch: Tensor,
    batch_bound: Tensor,
    m: float,
    a: Arithmetic,
) -> Tensor:
    """Return the bound of a running statistic after a batch, shape (C,).

    Args:
        old: the statistic before it.
        old_bound: the bound of that.
        new: the true one after it.
        batch: what the batch contributes: its mean, or its unbiased variance.
        batch_bound: the bound of that.
        m: the batch's weight.
        a: the layer's arithmetic.
    """
    own = mixing_error(a)
    reach = abs(1 - m) + abs(m)  # old + m (batch - old) rounds m old, too
    mixing = own * (reach * (old.abs() + old_bound) + abs(m) * (batch.abs() + batch_bound))
    bound = abs(1 - m) * old_bound + abs(m) * batch_bound + mixing
    bound = torch.where((old_bound + batch_bound).isinf(), _unbounded(bound), bound)
    return a.with_reference_error(bound + a.storing_error(new, a.state))


def gradient_bounds(
    batch: Normalisation, grad: Tensor, true: BatchNormGradients
) -> BatchNormGradients:
    """Return bounds of the gradients: input (C, n), weight (C,), bias (C,).

    Args:
        batch: how the layer normalises it.
        grad: the gradient with respect to the output, rows (C, n).
        true: the true gradients, the input's as rows (C, n).
    """
    a, posed = batch.arithmetic, batch.bounds.posed
    of_bias = (batch.sum_error + a.unit) * grad.abs().sum(1)
    of_weight = _weight_gradient_bound(batch, grad, true.weight)
    of_input = true.input.abs() * (batch.bounds.scale + a.gamma(8))[:, None]
    if batch.from_batch:
        of_input = _error_by_statistics(batch, grad, true, of_weight, of_bias) + of_input
    of_input = of_input + a.underflow_error(batch.scale, batch.weight)[:, None]
    of_input = a.with_reference_error(of_input + a.storing_error(true.input, a.input))
    of_weight = of_weight + a.underflow_error(batch.scale, torch.zeros_like(batch.scale))
    of_weight = a.with_reference_error(of_weight + a.storing_error(true.weight, a.state))
    if math.isinf(batch.sum_error):
        of_weight, of_bias = _unbounded(of_weight), _unbounded(of_bias)
    return BatchNormGradients(
        of_input.masked_fill(~posed[:, None], math.inf),
        of_weight.masked_fill(~posed, math.inf),
        a.with_reference_error(of_bias + a.storing_error(true.bias, a.state)),
    )


def _weight_gradient_bound(batch: Normalisation, grad: Tensor, true: Tensor) -> Tensor:
    """Return the bound of the weight's gradient before it is stored, shape (C,)."""
    a, bounds, sum_error = batch.arithmetic, batch.bounds, batch.sum_error
    size = grad.abs()
    # a layer may sum g x and g mean apart, or fold the scale: it pays for x, and not for x - mean
    by_sum = (sum_error + a.gamma(3)) * (size * batch.magnitude).sum(1)
    by_mean = bounds.mean * (1 + sum_error) * size.sum(1)
    reached = batch.scale * (1 + bounds.scale)
    return reached * (by_sum + by_mean) + true.abs() * (bounds.scale + a.gamma(2))


def _error_by_statistics(
    batch: Normalisation,
    grad: Tensor,
    true: BatchNormGradients,
    weight_bound: Tensor,
    bias_bound: Tensor,
) -> Tensor:
    """Return the error of the input's gradient through the statistics, rows (C, n).

    docs/tolerance.md, "Gradients", has the parts by these names: k, q, dk, dq.
    """
    a, bounds, n = batch.arithmetic, batch.bounds, batch.values.shape[1]
    reached = batch.scale * (1 + bounds.scale)
    q, k = true.weight.abs() / n, true.bias.abs() / n
    dq = weight_bound / n + a.gamma(2) * q
    dk = bias_bound / n + a.unit * k
    constant = dk + (batch.sum_error + a.unit) * q + a.gamma(8) * k
    constant = constant + reached * bounds.mean * (q + dq)
    linear = dq + q * (bounds.scale + 2 * a.gamma(8))
    xh = (batch.values - batch.statistics.mean[:, None]).abs() * batch.scale[:, None]
    inner = constant[:, None] + xh * linear[:, None] + a.gamma(8) * grad.abs()
    inner = inner + a.gamma(3) * (q * reached)[:, None] * batch.magnitude
    return (batch.weight.abs() * batch.scale * (1 + bounds.scale))[:, None] * inner
