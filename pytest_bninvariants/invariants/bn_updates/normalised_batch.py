"""The batch that a forward normalised, summed up as exactly as its judgement needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.batch_summary import (
    BatchEstimate,
    BatchSummary,
    depth_of,
    estimate,
    summarise,
)
from pytest_bninvariants.devices import has_float64
from pytest_bninvariants.snapshot.tensor_bytes import OUT_OF_MEMORY


@dataclass(slots=True)
class NormalisedBatch:
    """A batch (N, C, *) that a layer normalised.

    Args:
        dtype: the batch's dtype.
        channels: C.
        quick: the estimate of its statistics; None if only the summary tells them.
        exact: its summary, which may be on a device; None if nobody needed it yet.
        values: the values; None once they are summed up, so that they can be freed.
    """

    dtype: torch.dtype
    channels: int
    quick: BatchEstimate | None
    exact: BatchSummary | None
    values: Tensor | None

    @classmethod
    def from_values(cls, x: Tensor) -> NormalisedBatch:
        """Return the batch of these values, shape (N, C, *).

        If an estimate may do, the values are kept until `free_values`.
        """
        quick = None
        with suppress(OUT_OF_MEMORY):
            quick = estimate(x)
        exact = _summary(x) if quick is None else None
        return cls(x.dtype, x.shape[1], quick, exact, x if exact is None else None)

    @property
    def estimate(self) -> BatchEstimate:
        """Return the estimate, or the summary as one, on the host: equal for equal batches."""
        return self.quick or BatchEstimate.from_summary(self.summary)

    @property
    def summary(self) -> BatchSummary:
        """Return the summary."""
        if self.exact is None:
            assert self.values is not None
            self.exact = _summary(self.values)
        return self.exact

    @property
    def is_constant(self) -> bool:
        """Tell whether each channel has one value."""
        surely_varies = self.quick is not None and self.quick.surely_varies
        return not surely_varies and self.summary.is_constant

    def sum_up(self) -> None:
        """Sum the values up, so that they can change or be freed before the batch is judged."""
        self.exact, self.values = self.summary, None

    @property
    def pieces(self) -> list[Tensor]:
        """Return what is to be read on the host."""
        return [] if self.exact is None else [self.exact.vectors]

    def with_pieces(self, pieces: Iterator[Tensor]) -> NormalisedBatch:
        """Return this batch with other tensors in place of `pieces`: those on the host."""
        exact = self.exact and self.exact._replace(vectors=next(pieces))
        return NormalisedBatch(self.dtype, self.channels, self.quick, exact, self.values)


def _summary(x: Tensor) -> BatchSummary:
    """Sum up values on their device, or on the host if the device cannot."""
    depth = depth_of(x)
    if has_float64(x.device):
        with suppress(OUT_OF_MEMORY):
            return summarise(x, depth)
    return summarise(x.cpu(), depth)
