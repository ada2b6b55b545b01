"""The reference and the bounds together: what a layer's results must be, and how near."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.reference import (
    ReferenceBatchNorm,
    Statistics,
    batch_statistics,
    gradients_of,
    rows,
    unrows,
)
from pytest_bninvariants.batchnorm.tolerance import (
    Arithmetic,
    NormalisationBounds,
    gradient_bounds,
    normalisation_bounds,
    output_bound,
    running_bound,
    statistics_bounds,
    sum_depth,
)


class BoundedValue(NamedTuple):
    """A value, and how far a correct layer may be from it.

    Args:
        value: float64, on the CPU.
        bound: the same shape; infinite where nothing can be said.
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
        exact = torch.zeros(reference.num_features, dtype=torch.float64)
        self._state_errors = Statistics(exact, exact)

    @property
    def running_mean(self) -> BoundedValue:
        """Return what running_mean must be by now."""
        assert self.reference.running_mean is not None
        return BoundedValue(self.reference.running_mean.clone(), self._state_errors.mean)

    @property
    def running_var(self) -> BoundedValue:
        """Return what running_var must be by now."""
        assert self.reference.running_var is not None
        return BoundedValue(self.reference.running_var.clone(), self._state_errors.var)

    @torch.no_grad()
    def expect(self, x: Tensor) -> BatchExpectation:
        """Take a batch, and return what the layer must make of it.

        Args:
            x: shape (N, C, *), as the layer gets it.
        """
        values, depth = rows(x), _depth(x)
        from_batch = self.reference.uses_batch_statistics
        statistics = Statistics(*(each.clone() for each in self.reference.statistics(values)))
        errors = self._state_errors
        if from_batch:
            errors = statistics_bounds(values, statistics, depth, self.arithmetic)
        old = self._state()
        y = self.reference(x)
        if old is not None and values.numel() and self.reference.tracks:
            self._advance(old, statistics, errors, values.shape[1])
        return BatchExpectation(self, x, y, values, statistics, errors, depth, from_batch)

    def _state(self) -> Statistics | None:
        mean, var = self.reference.running_mean, self.reference.running_var
        return None if mean is None or var is None else Statistics(mean.clone(), var.clone())

    def _advance(self, old: Statistics, batch: Statistics, errors: Statistics, n: int) -> None:
        new = self._state()
        assert new is not None
        states = zip(old, self._state_errors, new, strict=True)
        m = self.reference.factor
        self._state_errors = _running_bounds(states, batch, errors, n, m, self.arithmetic)


class BatchExpectation:
    """What a layer must make of one batch."""

    def __init__(
        self,
        twin: ReferenceTwin,
        x: Tensor,
        y: Tensor,
        values: Tensor,
        statistics: Statistics,
        errors: Statistics,
        depth: int,
        from_batch: bool,
    ) -> None:
        reference = twin.reference
        self._reference, self._arithmetic = reference, twin.arithmetic
        self._shape, self._y, self._values = x.shape, y, values
        self._statistics, self._errors = statistics, errors
        self._depth, self._from_batch = depth, from_batch
        ones = torch.ones(reference.num_features, dtype=torch.float64)
        weight, bias = reference.weight, reference.bias
        self._weight = ones if weight is None else weight.detach()
        self._bias = 0 * ones if bias is None else bias.detach()

    @cached_property
    def bounds(self) -> NormalisationBounds:
        """Return the bounds of what the batch is normalised with."""
        return normalisation_bounds(
            self._statistics, self._errors, self._reference.eps, self._arithmetic
        )

    @cached_property
    @torch.no_grad()
    def output(self) -> BoundedValue:
        """Return the output, shape (N, C, *)."""
        bound = output_bound(
            self._values,
            rows(self._y),
            self._statistics,
            self.bounds,
            self._reference.eps,
            self._weight,
            self._bias,
            self._arithmetic,
        )
        return BoundedValue(self._y, unrows(bound, self._shape))

    @torch.no_grad()
    def gradients(self, grad: Tensor) -> tuple[BoundedValue, BoundedValue, BoundedValue]:
        """Return the gradients of input, weight and bias.

        Args:
            grad: the gradient with respect to the output, shape (N, C, *).
        """
        g = rows(grad)
        true = gradients_of(
            self._values, g, self._statistics, self._reference.eps, self._weight, self._from_batch
        )
        bounds = gradient_bounds(
            self._values,
            g,
            self._statistics,
            self.bounds,
            true,
            self._reference.eps,
            self._weight,
            self._depth,
            self._arithmetic,
            from_batch=self._from_batch,
        )
        return (
            BoundedValue(unrows(true.input, self._shape), unrows(bounds.input, self._shape)),
            BoundedValue(true.weight, bounds.weight),
            BoundedValue(true.bias, bounds.bias),
        )


@torch.no_grad()
def expected_statistics(
    old: Statistics, x: Tensor, momentum: float, arithmetic: Arithmetic
) -> tuple[BoundedValue, BoundedValue]:
    """Return what running_mean and running_var must be after a batch.

    Args:
        old: what they were, float64 on the CPU.
        x: the batch, shape (N, C, *).
        momentum: the batch's weight.
        arithmetic: what the layer may compute with.
    """
    values = rows(x)
    n = values.shape[1]
    batch = batch_statistics(values)
    errors = statistics_bounds(values, batch, _depth(x), arithmetic)
    unbiased = Statistics(batch.mean, batch.var * (n / (n - 1)))
    exact = torch.zeros_like(batch.mean)
    new = Statistics(
        *((1 - momentum) * a + momentum * b for a, b in zip(old, unbiased, strict=True))
    )
    states = zip(old, (exact, exact), new, strict=True)
    bounds = _running_bounds(states, batch, errors, n, momentum, arithmetic)
    return BoundedValue(new.mean, bounds.mean), BoundedValue(new.var, bounds.var)


def _running_bounds(
    states: Iterable[tuple[Tensor, Tensor, Tensor]],
    batch: Statistics,
    errors: Statistics,
    n: int,
    m: float,
    a: Arithmetic,
) -> Statistics:
    """Return the bounds of running statistics after a batch of n values per channel.

    Args:
        states: of the mean and the variance, the old one, its bound, and the true new one.
        batch: the batch's statistics, biased.
        errors: their bounds.
        n: how many values each channel has.
        m: the batch's weight.
        a: the layer's arithmetic.
    """
    unbias = n / (n - 1)
    of_batch = ((batch.mean, errors.mean), (batch.var * unbias, errors.var * unbias))
    return Statistics(
        *(
            running_bound(*state, *contributed, m, a)
            for state, contributed in zip(states, of_batch, strict=True)
        )
    )


def _depth(x: Tensor) -> int:
    """Return the depth of a channel's sums over a batch, as it lies in memory."""
    positions = math.prod(x.shape[2:])
    return sum_depth(
        x.shape[0],
        positions,
        x.dtype,
        x.device.type,
        rowwise=positions > 1 and x.is_contiguous(),
        threads=torch.get_num_threads(),
    )
