"""Sum up a batch on its own device: a few numbers a channel stand for all values.

The values are added up in float64, some channels at a time, so that the whole batch is not copied.
The first value of each channel is subtracted from the others before (Chan, Golub and LeVeque,
"Algorithms for computing the sample variance", 1983, section 3): no value is further than sqrt(n)
standard deviations from the mean, so the variance loses at most a factor n to cancellation, and
float64 serves as the truth for float32. For float64 the mean itself is subtracted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import FLOAT64, sum_depth
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
