"""Sum up a batch on its own device: a few numbers a channel stand for all values.

A summary adds the values up in float64, some channels at a time, so that it copies no whole batch.
The first value of each channel is subtracted from the others before (Chan, Golub and LeVeque,
"Algorithms for computing the sample variance", 1983, section 3): no value is further than sqrt(n)
standard deviations from the mean, so the variance loses at most a factor n to cancellation, and
float64 serves as the truth for float32. For float64 the mean itself is subtracted.

An estimate takes a third of the time on a CPU: its mean is as exact, but each square is rounded to
float32. docs/tolerance.md, "Running statistics", says what it is good for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import FLOAT64, UNIT, gamma, sum_depth
from pytest_bninvariants.batchnorm.reference import Statistics

_PIECE_ON_CPU = 2**16  # values whose float64 copies fit in a processor's cache
_PIECE_ON_DEVICE = 2**22


class BatchSummary(NamedTuple):
    """What a batch (N, C, *) comes to.

    Args:
        vectors: mean, biased variance, mean magnitude and squared deviations from some value of the
            channel, shape (4, C), float64.
        values: how many values each channel has.
        depth: the depth of a channel's sums, see `sum_depth`.
        dtype: the batch's dtype.
    """

    vectors: Tensor
    values: int
    depth: int
    dtype: torch.dtype

    @property
    def statistics(self) -> Statistics:
        """Return mean and biased variance."""
        return Statistics(self.vectors[0], self.vectors[1])

    @property
    def magnitude(self) -> Tensor:
        """Return the mean of the absolute values of each channel."""
        return self.vectors[2]

    @property
    def is_constant(self) -> bool:
        """Tell whether each channel has one value."""
        return not self.vectors[3].any()


class BatchEstimate(NamedTuple):
    """What running statistics take from a batch (N, C, *), with a variance that is nearly exact.

    Args:
        moments: mean and unbiased variance, shape (2, C), float64.
        slack: by how much a correct layer's may differ from these at least, shape (2, C), float64.
        unit: the unit roundoff of the sums of layers that this holds for.
        values: how many values each channel has.
    """

    moments: Tensor
    slack: Tensor
    unit: float
    values: int

    @classmethod
    def from_summary(cls, summary: BatchSummary) -> BatchEstimate:
        """Return what a summary says, which is exact."""
        (mean, var), n = summary.statistics, summary.values
        moments = torch.stack([mean, var * (n / (n - 1))])
        return cls(moments, torch.zeros_like(moments), UNIT[FLOAT64], n)

    @property
    def surely_varies(self) -> bool:
        """Tell whether some channel certainly has more than one value."""
        var, error = self.moments[1], self.slack[1]
        return bool(var[0] > error[0]) or bool((var > error).any())


def estimate(x: Tensor) -> BatchEstimate | None:
    """Estimate the statistics of a batch (N, C, *); None if a summary is as quick, or needed.

    Args:
        x: the batch, of at least two values a channel.
    """
    if x.device.type != "cpu" or x.dtype is FLOAT64:
        return None
    dims, n, unit = [0, *range(2, x.dim())], x.numel() // x.shape[1], UNIT[torch.float32]
    mean = x.sum(dims, dtype=FLOAT64).div_(n)
    squares = x.float().square().sum(dims, dtype=FLOAT64).div_(n)
    part = x[: len(x) // 8 + 1]  # its magnitude is some of the whole batch's
    off = part.abs().sum(dims, dtype=FLOAT64).mul_(gamma(depth_of(x), unit) / n)
    slack = torch.stack([off, squares * (2 * unit * n / (n - 1))])
    var = squares.addcmul_(mean, mean, value=-1).mul_(n / (n - 1))
    return BatchEstimate(torch.stack([mean, var]), slack, unit, n)


def summarise(x: Tensor, depth: int) -> BatchSummary:
    """Sum up a batch (N, C, *) on its device, which must have float64.

    Args:
        x: the batch, of at least one sample.
        depth: the depth of a channel's sums where a layer normalises the batch.
    """
    count = x.numel() // x.shape[1]
    most = _PIECE_ON_CPU if x.device.type == "cpu" else _PIECE_ON_DEVICE
    parts = [_vectors(part) for part in torch.split(x, max(1, most // count), dim=1)]
    return BatchSummary(parts[0] if len(parts) == 1 else torch.cat(parts, 1), count, depth, x.dtype)


def _vectors(x: Tensor) -> Tensor:
    """Return the vectors of some channels."""
    rows = x.transpose(0, 1).flatten(1)
    count, shift = rows.shape[1], rows[:, :1].to(FLOAT64)
    if x.dtype is FLOAT64:
        shift = shift + (rows - shift).mean(1, keepdim=True)
        magnitude, deviation = rows.abs().sum(1), rows - shift
    else:
        deviation = rows.to(FLOAT64)
        magnitude = deviation.abs().sum(1)
        deviation.sub_(shift)
    rest = deviation.sum(1) / count
    squares = deviation.square_().sum(1)
    mean, var = shift.squeeze(1) + rest, squares / count - rest.square()
    return torch.stack([mean, var, magnitude / count, squares])


def depth_of(x: Tensor) -> int:
    """Return the depth of a channel's sums over a batch in its layout in memory."""
    positions = math.prod(x.shape[2:])
    return sum_depth(
        x.shape[0],
        positions,
        x.dtype,
        x.device.type,
        rowwise=positions > 1 and x.is_contiguous(),
        threads=torch.get_num_threads(),
    )
