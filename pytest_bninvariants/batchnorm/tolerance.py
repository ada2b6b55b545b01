"""How far off a correct BatchNorm may be: bounds that follow from the arithmetic and the data.

Nothing here is tuned. docs/tolerance.md derives each bound; the method is that of Higham, "Accuracy
and Stability of Numerical Algorithms", chapters 3 and 4: a result of k roundings is off by at most
gamma(k) = k u / (1 - k u), and a sum by gamma(h) sum|x|, where h is the most additions that a term
goes through. All tensors are float64: rows (C, n) of a batch, and vectors (C,) of a channel's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.reference import BatchNormGradients, Statistics

FLOAT64 = torch.float64
UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
TINY = {
    torch.float64: 5e-324,
    torch.float32: 2.0**-150,
    torch.float16: 2.0**-25,
    torch.bfloat16: 2.0**-134,
}
_HALF = (torch.float16, torch.bfloat16)


def gamma(k: float, unit: float) -> float:
    """Return the relative error of k roundings, infinite where k u reaches 1."""
    return k * unit / (1 - k * unit) if k * unit < 1 else math.inf


def cascade_depth(n: int) -> int:
    """Return the most additions that a term of `torch.sum` over n float32 values goes through.

    Four levels of at least 16 terms each, then the lanes of a vector and their remainder
    (`aten/src/ATen/native/cpu/SumKernel.cpp`, cascade_sum).
    """
    return min(n, 4 * max(16, math.ceil(2 * math.sqrt(math.sqrt(n)))) + 32)


def sum_depth(
    samples: int, positions: int, dtype: torch.dtype, device: str, *, rowwise: bool, threads: int
) -> int:
    """Return the most additions that a term of a channel's sum goes through.

    Args:
        samples: N.
        positions: L, positions of a sample.
        dtype: of the input.
        device: type of the device, such as `cpu`.
        rowwise: whether a channel's positions lie side by side in memory: contiguous, L > 1.
        threads: how many threads share the sum, on the CPU.
    """
    n = samples * positions
    if device != "cpu":  # at least one warp shares a channel, and then reduces in a tree
        return math.ceil(n / 32) + 16
    if dtype is not torch.float32:  # torch.batch_norm adds one by one
        return n + 1
    if rowwise:
        return samples + cascade_depth(positions) + threads
    return max(math.ceil(n / threads) + 1, cascade_depth(n)) + threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """The arithmetic that a layer may use.

    Args:
        operations: dtype of single operations.
        sums: dtype of sums.
        input: dtype of input, output and the input's gradient.
        state: dtype of parameters, their gradients and running statistics.
    """

    operations: torch.dtype
    sums: torch.dtype
    input: torch.dtype
    state: torch.dtype

    @property
    def unit(self) -> float:
        """Return the unit roundoff of single operations."""
        return UNIT[self.operations]

    @property
    def sum_unit(self) -> float:
        """Return the unit roundoff of sums."""
        return UNIT[self.sums]

    @classmethod
    def for_dtypes(cls, input_dtype: torch.dtype, state_dtype: torch.dtype) -> Arithmetic:
        """Return what dtypes ask for: float32 inside, half only where all tensors are half."""
        widest = FLOAT64 if FLOAT64 in (input_dtype, state_dtype) else torch.float32
        all_half = input_dtype in _HALF and state_dtype in _HALF
        return cls(
            operations=state_dtype if all_half else widest,
            sums=widest,
            input=input_dtype,
            state=state_dtype,
        )

    def rounded(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Return by how much a value changes when it is stored in a dtype."""
        unit = 0.0 if UNIT[dtype] <= self.unit and dtype not in _HALF else UNIT[dtype]
        return unit * value.abs() + TINY[dtype]

    def underflow(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Return what intermediate results near zero lose before they are multiplied."""
        return 4 * TINY[self.operations] * (1 + scale) * (1 + weight.abs())

    def gamma(self, k: int) -> float:
        """Return the relative error of k operations."""
        return gamma(k, self.unit)

    def widened(self, bound: Tensor) -> Tensor:
        """Return a bound with the reference's own error, which is that of float64."""
        return bound * (1 + UNIT[FLOAT64] / self.unit)


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


def statistics_bounds(values: Tensor, true: Statistics, depth: int, a: Arithmetic) -> Statistics:
    """Return bounds of a batch's mean and biased variance.

    Args:
        values: rows (C, n).
        true: their statistics.
        depth: of their sums, see `sum_depth`.
        a: the layer's arithmetic.
    """
    g = gamma(depth, a.sum_unit)
    if math.isinf(g):
        return Statistics(_nothing(true.mean), _nothing(true.var))
    magnitude = values.abs().mean(1)
    mean = g * magnitude + a.gamma(2) * true.mean.abs()
    var = (g + a.gamma(4)) * (true.var + mean.square()) + mean.square()
    # Welford's update is off by gamma(h) kappa var, kappa^2 = 1 + mean^2 / var
    var = var + g * (true.var * (true.var + true.mean.square())).sqrt()
    if a.operations is torch.float16:  # a sum of squares that is kept in it may overflow
        squares = values.shape[1] * true.var
        var = torch.where(2 * squares > torch.finfo(torch.float16).max, _nothing(var), var)
    return Statistics(mean, var)


def _nothing(value: Tensor) -> Tensor:
    """Return the bound of what nothing bounds; an infinite gamma times 0 would be NaN."""
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
    return NormalisationBounds(errors.mean, errors.var, errors.var / (2 * gap) + a.gamma(3), posed)


def output_bound(
    values: Tensor,
    y: Tensor,
    true: Statistics,
    bounds: NormalisationBounds,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    a: Arithmetic,
) -> Tensor:
    """Return the bound of the output, rows (C, n); it covers (x - mean) r w + b and x s + t alike.

    Args:
        values: the input, rows (C, n).
        y: the true output, rows (C, n).
        true: the true statistics.
        bounds: the bounds of what is made of them.
        eps: the layer's.
        weight: shape (C,).
        bias: shape (C,).
        a: the layer's arithmetic.
    """
    scale = weight.abs() * (true.var + eps).rsqrt()
    reached = scale * (1 + bounds.scale) * (1 + a.gamma(4))
    near = bounds.mean[:, None] + a.gamma(3) * (values.abs() + true.mean.abs()[:, None])
    far = (values - true.mean[:, None]).abs() * (scale * (bounds.scale + a.gamma(4)))[:, None]
    bound = reached[:, None] * near + far + (a.gamma(3) * bias.abs())[:, None]
    bound = bound + a.unit * y.abs() + a.rounded(y, a.input)
    bound = bound + a.underflow((true.var + eps).rsqrt(), weight)[:, None]
    return a.widened(bound).masked_fill(~bounds.posed[:, None], math.inf)


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
    own = gamma(5, max(a.unit, UNIT[a.state]))
    reach = abs(1 - m) + abs(m)  # old + m (batch - old) rounds m old, too
    mixing = own * (reach * (old.abs() + old_bound) + abs(m) * (batch.abs() + batch_bound))
    bound = abs(1 - m) * old_bound + abs(m) * batch_bound + mixing
    bound = torch.where((old_bound + batch_bound).isinf(), _nothing(bound), bound)
    return a.widened(bound + a.rounded(new, a.state))


def gradient_bounds(
    values: Tensor,
    grad: Tensor,
    true: Statistics,
    bounds: NormalisationBounds,
    gradients: BatchNormGradients,
    eps: float,
    weight: Tensor,
    depth: int,
    a: Arithmetic,
    *,
    from_batch: bool,
) -> BatchNormGradients:
    """Return bounds of the gradients: input (C, n), weight (C,), bias (C,).

    Args:
        values: the input, rows (C, n).
        grad: the gradient with respect to the output, rows (C, n).
        true: the true statistics.
        bounds: the bounds of what is made of them.
        gradients: the true gradients, the input's as rows (C, n).
        eps: the layer's.
        weight: shape (C,).
        depth: of a channel's sums, see `sum_depth`.
        a: the layer's arithmetic.
        from_batch: whether the statistics are the batch's.
    """
    n = values.shape[1]
    g_sum = gamma(depth, a.sum_unit)
    r = (true.var + eps).rsqrt()
    reached = r * (1 + bounds.scale)
    deviation = (values - true.mean[:, None]).abs()
    size = grad.abs()
    total = size.sum(1)

    of_bias = (g_sum + a.unit) * total
    # a layer may sum g x and g mean apart, or fold the scale: it pays for x, and not for x - mean
    paid = values.abs() + true.mean.abs()[:, None]
    of_weight = reached * (
        (g_sum + a.gamma(3)) * (size * paid).sum(1) + bounds.mean * (1 + g_sum) * total
    ) + gradients.weight.abs() * (bounds.scale + a.gamma(2))

    factor = weight.abs() * r
    own = gradients.input.abs() * (bounds.scale + a.gamma(8))[:, None]
    if not from_batch:
        of_input = own
    else:
        p = gradients.weight.abs() / n
        p_bound = of_weight / n + a.gamma(2) * p
        bar = gradients.bias.abs() / n
        bar_bound = of_bias / n + a.unit * bar
        xh = deviation * r[:, None]
        constant = bar_bound + (g_sum + a.unit) * p + a.gamma(8) * bar
        constant = constant + reached * bounds.mean * (p + p_bound)
        linear = p_bound + p * (bounds.scale + 2 * a.gamma(8))
        inner = constant[:, None] + xh * linear[:, None] + a.gamma(8) * size
        inner = inner + a.gamma(3) * (p * reached)[:, None] * paid
        of_input = (factor * (1 + bounds.scale))[:, None] * inner + own
    of_input = of_input + a.underflow(r, weight)[:, None]
    of_input = a.widened(of_input + a.rounded(gradients.input, a.input))
    of_weight = of_weight + a.underflow(r, torch.zeros_like(r))
    of_weight = a.widened(of_weight + a.rounded(gradients.weight, a.state))
    if math.isinf(g_sum):
        of_weight, of_bias = _nothing(of_weight), _nothing(of_bias)
    return BatchNormGradients(
        of_input.masked_fill(~bounds.posed[:, None], math.inf),
        of_weight.masked_fill(~bounds.posed, math.inf),
        a.widened(of_bias + a.rounded(gradients.bias, a.state)),
    )
