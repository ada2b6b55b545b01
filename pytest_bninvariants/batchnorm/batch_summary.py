"""Sum up a batch on its own device: a few numbers a channel stand for all values.

The values are added up in float64, in pieces, so that no copy of the whole batch is made. The first
value of each channel is subtracted from the others before (Chan, Golub and LeVeque, "Algorithms for
computing the sample variance", 1983, section 3): no value is further than sqrt(n) standard
deviations from the mean, so the variance loses at most a factor n to cancellation, and float64
serves as the truth for float32. For float64 the mean itself is subtracted, in a second pass.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import FLOAT64, sum_depth
from pytest_bninvariants.batchnorm.reference import Statistics

_PIECE_ON_CPU = 2**17  # values whose float64 copies fit in a processor's cache
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
    first = x[0]
    while first.dim() > 1:
        first = first[..., 0]
    shift = first.to(FLOAT64)
    if x.dtype is FLOAT64:
        shift = shift + _sums(x, shift)[0] / count
    total, squares, magnitudes = _sums(x, shift)
    rest = total / count
    var = squares / count - rest.square()
    vectors = torch.stack([shift + rest, var, magnitudes / count, squares])
    return BatchSummary(vectors, count, depth, x.dtype)


def _sums(x: Tensor, shift: Tensor) -> Tensor:
    """Return sums a channel: of x - shift, of its square, and of |x|, shape (3, C)."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    offset = shift.view(1, -1, *[1] * (x.dim() - 2))
    most = _PIECE_ON_CPU if x.device.type == "cpu" else _PIECE_ON_DEVICE
    samples = max(1, most * len(x) // x.numel())
    sums = []
    for piece in torch.split(x, samples):
        magnitude = piece.abs().sum(dims, dtype=FLOAT64)
        # `to` returns float64 as it is, and must not be written to
        deviation = piece - offset if x.dtype is FLOAT64 else piece.to(FLOAT64).sub_(offset)
        total = deviation.sum(dims)
        sums.append(torch.stack([total, deviation.square_().sum(dims), magnitude]))
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)


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
