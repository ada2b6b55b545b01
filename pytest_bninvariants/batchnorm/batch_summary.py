"""Sum up a batch on its own device: a few numbers a channel stand for all values.

A summary adds the values up in float64, some channels at a time, so that it copies no whole batch.
The first value of each channel is subtracted from the others before (Chan, Golub and LeVeque,
"Algorithms for computing the sample variance", 1983, section 3): no value is further than sqrt(n)
standard deviations from the mean, so the variance loses at most a factor n to cancellation, and
float64 serves as the truth for float32. For float64 the mean itself is subtracted.

On a CPU, float64 copies take longer than a layer's forward. There float64 sums take the values as
they are, and the squares of their deviations from the mean, which are rounded to float32:
docs/tolerance.md, "Running statistics", says what that costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import FLOAT64, UNIT, gamma, sum_depth
from pytest_bninvariants.batchnorm.reference import Statistics

_UNIT = UNIT[torch.float32]
_PIECE_ON_CPU = 2**16  # values whose float64 copies fit in a processor's cache
_PIECE_ON_DEVICE = 2**22


class BatchSummary(NamedTuple):
    """What a batch (N, C, *) comes to.

    Args:
        vectors: mean, biased variance, mean magnitude or more, and squared deviations from some
            value of the channel, shape (4, C), float64.
        values: how many values each channel has.
        depth: the depth of a channel's sums, see `sum_depth`.
        dtype: the batch's dtype.
        unit: the unit roundoff of deviations and squares; 0 if the variance is as good as exact.
    """

    vectors: Tensor
    values: int
    depth: int
    dtype: torch.dtype
    unit: float = 0.0

    @property
    def summary(self) -> BatchSummary:
        """Return this summary."""
        return self

    @property
    def channels(self) -> int:
        """Return C."""
        return self.vectors.shape[1]

    @property
    def pieces(self) -> list[Tensor]:
        """Return what is to be read on the host."""
        return [self.vectors]

    def on_host(self, pieces: Iterator[Tensor]) -> BatchSummary:
        """Return this summary with what `pieces` has, on the host."""
        return self._replace(vectors=next(pieces))

    @property
    def key(self) -> Tensor:
        """Return a tensor that equals that of another batch if, and as good as only if, both do."""
        return self.vectors

    @property
    def statistics(self) -> Statistics:
        """Return mean and biased variance."""
        return Statistics(self.vectors[0], self.vectors[1])

    @property
    def magnitude(self) -> Tensor:
        """Return the mean of the absolute values of each channel, or more."""
        return self.vectors[2]

    @property
    def variance_error(self) -> Tensor:
        """Return how far off the variance may be, shape (C,)."""
        return variance_error(self.statistics.var, self.unit)

    @property
    def is_constant(self) -> bool:
        """Tell whether each channel has one value."""
        return not self.vectors[3].any()


class BatchSums(NamedTuple):
    """The sums of a batch (N, C, *) of the host, from which its summary is made if it is needed.

    Args:
        total: the sum of the values, shape (C,), float64.
        shift: the mean, rounded to float32, shape (C,).
        squares: the sum of the squares of the deviations from the shift, shape (C,), float64.
        values: how many values each channel has.
        depth: the depth of a channel's sums, see `sum_depth`.
        dtype: the batch's dtype.
    """

    total: Tensor
    shift: Tensor
    squares: Tensor
    values: int
    depth: int
    dtype: torch.dtype

    @classmethod
    def from_values(cls, x: Tensor, depth: int) -> BatchSums:
        """Add up a batch (N, C, *) of float32 or half values on the host.

        Args:
            x: the batch, of at least one sample.
            depth: the depth of a channel's sums where a layer normalises the batch.
        """
        dims, values = [0, *range(2, x.dim())], x.numel() // x.shape[1]
        total = x.sum(dims, dtype=FLOAT64)
        shift = (total / values).float()
        deviations = x - shift.view(-1, *(1 for _ in dims[1:]))
        squares = deviations.square_().sum(dims, dtype=FLOAT64)
        return cls(total, shift, squares, values, depth, x.dtype)

    @property
    def summary(self) -> BatchSummary:
        """Return the summary."""
        mean, var, magnitude = moments_of(self.total, self.shift, self.squares, self.values)
        varies = torch.full_like(mean, not self.is_constant)
        vectors = torch.stack([mean, var, magnitude, varies])
        return BatchSummary(vectors, self.values, self.depth, self.dtype, _UNIT)

    @property
    def is_constant(self) -> bool:
        """Tell whether each channel has one value, or one and its next neighbours in float32."""
        most = (2 * _UNIT * self.shift).square() * self.values
        return bool(self.squares[0] <= most[0]) and bool((self.squares <= most).all())

    @property
    def channels(self) -> int:
        """Return C."""
        return len(self.total)

    @property
    def pieces(self) -> list[Tensor]:
        """Return what is to be read on the host: nothing, it is there."""
        return []

    def on_host(self, pieces: Iterator[Tensor]) -> BatchSums:
        """Return these sums."""
        return self

    @property
    def key(self) -> Tensor:
        """Return a tensor that equals that of another batch if, and as good as only if, both do."""
        return torch.stack([self.total, self.squares])


def variance_error(var: Tensor, unit: float) -> Tensor:
    """Return how far off a variance may be, by the rounding of deviations and squares."""
    return gamma(4, unit) * var


def moments_of(
    total: Tensor, shift: Tensor, squares: Tensor, values: int | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased variance and mean magnitude, or more, of channels with these sums.

    See `BatchSums` for the arguments; `values` may differ from channel to channel.
    """
    mean = total / values
    var = squares / values - (mean - shift).square()
    return mean, var, (var + mean.square()).sqrt()


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
