"""What a layer that synchronises must make of a batch of which each rank has a shard.

The reference gets all shards as one batch. docs/tolerance.md, "Over several ranks", derives how far
off statistics may be that were combined from those of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import Arithmetic
from pytest_bninvariants.batchnorm.batch_summary import depth_of
from pytest_bninvariants.batchnorm.expectation import BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.reference import (
    BatchNormGradients,
    ReferenceBatchNorm,
    Statistics,
    gradients_of,
    rows,
    unrows,
)
from pytest_bninvariants.batchnorm.tolerance import (
    Normalisation,
    combining_error,
    gradient_bounds,
    output_bound,
    statistics_bounds,
    sums_of_squares_error,
)

_ROUNDINGS_PER_RANK = 4  # to weigh a rank's mean by its count and mix it in


class WholeBatchTwin(ReferenceTwin):
    """Follow a layer on several ranks, with the reference and the bounds of its state.

    Args:
        reference: the reference in the layer's state and mode.
        arithmetic: what the layer may compute with.
        squares: whether the layer may exchange sums of squares, which costs digits where a mean is
            large beside the deviation.
    """

    def __init__(
        self, reference: ReferenceBatchNorm, arithmetic: Arithmetic, *, squares: bool
    ) -> None:
        super().__init__(reference, arithmetic)
        self._squares = squares

    @torch.no_grad()
    def expect_shards(self, shards: Sequence[Tensor]) -> ShardedExpectation:
        """Follow the layer through a batch, and return what it must make of each rank's shard."""
        whole = torch.cat([rows(x) for x in shards], 1).T
        own = max(depth_of(x) for x in shards)
        batch, y = self._follow(whole, own + _ROUNDINGS_PER_RANK * len(shards))
        return ShardedExpectation(batch, rows(y), [x.shape for x in shards])

    def _batch_errors(self, values: Tensor, true: Statistics, depth: int) -> Statistics:
        """Return how far off statistics may be that are combined from those of the ranks."""
        a = self.arithmetic
        mean, var = statistics_bounds(values, true, depth, a)
        var = var + combining_error(true, self.reference.eps, depth, a)
        if self._squares:
            var = var + sums_of_squares_error(true, depth, a)
        return Statistics(mean, var)


class ShardedExpectation:
    """What a layer must make of the shards of one batch.

    Args:
        batch: how it normalises the whole batch.
        y: the true output of that, rows (C, n).
        shapes: the shards' shapes.
    """

    def __init__(self, batch: Normalisation, y: Tensor, shapes: Sequence[torch.Size]) -> None:
        self._batch, self._y, self._shapes = batch, y, shapes

    @property
    @torch.no_grad()
    def output(self) -> list[BoundedValue]:
        """Return each rank's output, in its shard's shape."""
        return self._bounded_shards(self._y, output_bound(self._batch, self._y))

    @torch.no_grad()
    def gradients(
        self, grads: Sequence[Tensor], shares: str
    ) -> tuple[list[BoundedValue], list[BoundedValue], list[BoundedValue]]:
        """Return the gradients of input, weight and bias on each rank.

        Args:
            grads: the gradients with respect to the ranks' outputs.
            shares: what weight and bias get on a rank: `own`, the sum over its samples; or the
                `sum` or the `mean` of these over the ranks.
        """
        batch, g = self._batch, torch.cat([rows(each) for each in grads], 1)
        true, bounds = _gradients(batch, g)
        of_input = self._bounded_shards(true.input, bounds.input)
        if shares == "own":
            own = [self._own_gradients(x, g) for x, g in self._shares(batch.values, g)]
        else:
            size = len(self._shapes) if shares == "mean" else 1
            own = [(true, bounds)] * len(self._shapes)
            own = [(_divided(t, size), _divided(b, size)) for t, b in own]
        of_weight = [BoundedValue(t.weight, b.weight) for t, b in own]
        return of_input, of_weight, [BoundedValue(t.bias, b.bias) for t, b in own]

    def _own_gradients(
        self, values: Tensor, g: Tensor
    ) -> tuple[BatchNormGradients, BatchNormGradients]:
        """Return those of weight and bias over a rank's samples, of the whole's statistics."""
        return _gradients(replace(self._batch, values=values, from_batch=False), g)

    def _shares(self, *whole: Tensor) -> list[tuple[Tensor, ...]]:
        counts = [shape.numel() // shape[1] for shape in self._shapes]
        return list(zip(*(torch.split(each, counts, 1) for each in whole), strict=True))

    def _bounded_shards(self, value: Tensor, bound: Tensor) -> list[BoundedValue]:
        pairs = zip(self._shares(value, bound), self._shapes, strict=True)
        return [BoundedValue(unrows(v, s), unrows(b, s)) for (v, b), s in pairs]


def _gradients(batch: Normalisation, g: Tensor) -> tuple[BatchNormGradients, BatchNormGradients]:
    """Return the true gradients, and their bounds, the input's as rows (C, n)."""
    true = gradients_of(
        batch.values, g, batch.statistics, batch.eps, batch.weight, batch.from_batch
    )
    return true, gradient_bounds(batch, g, true)


def _divided(gradients: BatchNormGradients, by: int) -> BatchNormGradients:
    return BatchNormGradients(*(each / by for each in gradients))
