"""Combine the reference with the bounds: what a layer's results must be, and how exactly."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import Arithmetic
from pytest_bninvariants.batchnorm.batch_summary import BatchSummary, depth_of
from pytest_bninvariants.batchnorm.reference import (
    ReferenceBatchNorm,
    Statistics,
    gradients_of,
    rows,
    unrows,
)
from pytest_bninvariants.batchnorm.tolerance import (
    Normalisation,
    NormalisationBounds,
    bounds_by_magnitude,
    gradient_bounds,
    output_bound,
    running_bound,
    statistics_bounds,
)


class BoundedValue(NamedTuple):
    """A value, and how far a correct layer may be from it.

    Args:
        value: float64, on the CPU.
        bound: the same shape; infinite where nothing bounds it.
    """

    value: Tensor
    bound: Tensor


class ReferenceTwin:
    """Follow a layer through its batches, with the reference and the bounds of its state.

    Args:
        reference: the reference in the layer's state and mode.
        arithmetic: what the layer may compute with.
    """

    def __init__(self, reference: ReferenceBatchNorm, arithmetic: Arithmetic) -> None:
        self.reference = reference
        self.arithmetic = arithmetic
        exact = torch.zeros(reference.num_features, dtype=torch.float64, device="cpu")
        self._state_errors = Statistics(exact, exact)

    @property
    def running_mean(self) -> BoundedValue:
        """Return what running_mean must be now."""
        assert self.reference.running_mean is not None
        return BoundedValue(self.reference.running_mean.clone(), self._state_errors.mean)

    @property
    def running_var(self) -> BoundedValue:
        """Return what running_var must be now."""
        assert self.reference.running_var is not None
        return BoundedValue(self.reference.running_var.clone(), self._state_errors.var)

    @torch.no_grad()
    def expect(self, x: Tensor) -> BatchExpectation:
        """Follow the layer through a batch, and return what it must make of it.

        Args:
            x: the batch as the layer gets it, shape (N, C, *).
        """
        return BatchExpectation(*self._follow(x, depth_of(x)))

    def _follow(self, x: Tensor, depth: int) -> tuple[Normalisation, Tensor]:
        """Follow the layer through a batch; return how it normalises that, and the true output."""
        batch, old = self._normalisation(x, depth), self._state()
        y = self.reference(x)
        if old is not None and x.numel() and self.reference.tracks:
            self._advance(old, batch)
        return batch, y

    def _batch_errors(self, values: Tensor, true: Statistics, depth: int) -> Statistics:
        """Return how far off the layer's statistics of a batch may be."""
        return statistics_bounds(values, true, depth, self.arithmetic)

    def _normalisation(self, x: Tensor, depth: int) -> Normalisation:
        """Return how the layer normalises a batch in its present mode and state."""
        bn, values = self.reference, rows(x)
        from_batch = bn.uses_batch_statistics
        statistics = Statistics(*(each.clone() for each in bn.statistics(values)))
        errors = self._state_errors
        if from_batch:
            errors = self._batch_errors(values, statistics, depth)
        ones = torch.ones(bn.num_features, dtype=torch.float64, device="cpu")
        return Normalisation(
            values=values,
            statistics=statistics,
            errors=errors,
            eps=bn.eps,
            weight=ones if bn.weight is None else bn.weight.detach(),
            bias=0 * ones if bn.bias is None else bn.bias.detach(),
            from_batch=from_batch,
            depth=depth,
            arithmetic=self.arithmetic,
        )

    def _state(self) -> Statistics | None:
        mean, var = self.reference.running_mean, self.reference.running_var
        return None if mean is None or var is None else Statistics(mean.clone(), var.clone())

    def _advance(self, old: Statistics, batch: Normalisation) -> None:
        """Advance the bounds of the running statistics over a tracked batch."""
        new = self._state()
        assert new is not None
        self._state_errors = _running_bounds(
            old,
            self._state_errors,
            new,
            batch.statistics,
            batch.errors,
            batch.values.shape[1],
            self.reference.factor,
            self.arithmetic,
        )


class BatchExpectation:
    """What a layer must make of one batch.

    Args:
        batch: how the layer normalises it.
        y: the true output.
    """

    def __init__(self, batch: Normalisation, y: Tensor) -> None:
        self._batch, self._y, self._shape = batch, y, y.shape

    @property
    def bounds(self) -> NormalisationBounds:
        """Return the bounds of what the batch is normalised with."""
        return self._batch.bounds

    @cached_property
    @torch.no_grad()
    def output(self) -> BoundedValue:
        """Return the output, shape (N, C, *)."""
        bound = output_bound(self._batch, rows(self._y))
        return BoundedValue(self._y, unrows(bound, self._shape))

    @torch.no_grad()
    def gradients(self, grad: Tensor) -> tuple[BoundedValue, BoundedValue, BoundedValue]:
        """Return the gradients of input, weight and bias.

        Args:
            grad: the gradient with respect to the output, shape (N, C, *).
        """
        batch, g = self._batch, rows(grad)
        true = gradients_of(
            batch.values, g, batch.statistics, batch.eps, batch.weight, batch.from_batch
        )
        bounds = gradient_bounds(batch, g, true)
        return (
            BoundedValue(unrows(true.input, self._shape), unrows(bounds.input, self._shape)),
            BoundedValue(true.weight, bounds.weight),
            BoundedValue(true.bias, bounds.bias),
        )


@torch.no_grad()
def expected_statistics(
    old: Statistics, summary: BatchSummary, momentum: float, arithmetic: Arithmetic
) -> tuple[BoundedValue, BoundedValue]:
    """Return what running_mean and running_var must be after a batch.

    Args:
        old: what they were, float64 on the CPU.
        summary: what the batch comes to, on the CPU.
        momentum: the batch's weight.
        arithmetic: what the layer may compute with.
    """
    batch, n = summary.statistics, summary.values
    mean, var = bounds_by_magnitude(summary.magnitude, n, batch, summary.depth, arithmetic)
    errors = Statistics(mean, var + summary.variance_error)
    exact = Statistics(torch.zeros_like(batch.mean), torch.zeros_like(batch.var))
    new = Statistics(
        (1 - momentum) * old.mean + momentum * batch.mean,
        (1 - momentum) * old.var + momentum * (batch.var * (n / (n - 1))),
    )
    bounds = _running_bounds(old, exact, new, batch, errors, n, momentum, arithmetic)
    return BoundedValue(new.mean, bounds.mean), BoundedValue(new.var, bounds.var)


def _running_bounds(
    old: Statistics,
    old_bounds: Statistics,
    new: Statistics,
    batch: Statistics,
    errors: Statistics,
    n: int,
    m: float,
    a: Arithmetic,
) -> Statistics:
    """Return the bounds of running statistics after a batch of n values per channel.

    Args:
        old: the statistics before it.
        old_bounds: their bounds.
        new: the true ones after it.
        batch: the batch's, biased.
        errors: their bounds.
        n: how many values each channel has.
        m: the batch's weight.
        a: the layer's arithmetic.
    """
    unbias = n / (n - 1)
    var, var_bound = batch.var * unbias, errors.var * unbias
    return Statistics(
        running_bound(old.mean, old_bounds.mean, new.mean, batch.mean, errors.mean, m, a),
        running_bound(old.var, old_bounds.var, new.var, var, var_bound, m, a),
    )
