"""The reference held against plain Python, with bounds, and against exact fractions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm, batch_statistics
from tests.batchnorm.reference.checks import U, assert_within, calm, gamma, numbers


@dataclass(frozen=True)
class Channel:
    """One channel in plain Python, and how far from it a float64 BatchNorm may end up.

    `math.fsum` rounds once. With the mean in two parts, high and low, a deviation is off by one
    rounding whatever the offset, so that the bounds are the reference's own roundings, and a few of
    this one's. They are first order in the conditioning: an error of the mean counts (var + eps)
    to the -1/2 times in the output.
    """

    xs: list[float]
    eps: float
    weight: float
    bias: float
    stored: tuple[float, float] | None = None

    @cached_property
    def mean(self) -> tuple[float, float]:
        if self.stored is not None:
            return self.stored[0], 0.0
        n = len(self.xs)
        high = math.fsum(self.xs) / n
        return high, math.fsum([*self.xs, *[-high] * n]) / n

    @cached_property
    def deviations(self) -> list[float]:
        high, low = self.mean
        return [math.fsum((x, -high, -low)) for x in self.xs]

    @cached_property
    def var(self) -> float:
        if self.stored is not None:
            return self.stored[1]
        return math.fsum(d * d for d in self.deviations) / len(self.xs)

    @cached_property
    def scale(self) -> float:
        return 1 / math.sqrt(self.var + self.eps)

    @cached_property
    def normalised(self) -> list[float]:
        return [d * self.scale for d in self.deviations]

    @cached_property
    def outputs(self) -> list[float]:
        return [self.weight * xh + self.bias for xh in self.normalised]

    def gradient(self, grad: list[float]) -> list[float]:
        """Return the input's gradient by way of those of variance and mean, as the paper does."""
        of_xh = [g * self.weight for g in grad]
        direct = [g * self.scale for g in of_xh]
        if self.stored is not None:
            return direct
        n, pairs = len(grad), list(zip(of_xh, self.deviations, strict=True))
        of_var = math.fsum(g * d for g, d in pairs) * -0.5 * self.scale**3
        of_mean = -math.fsum(direct) - of_var * 2 * math.fsum(self.deviations) / n
        return [
            own + of_var * 2 * d / n + of_mean / n
            for own, d in zip(direct, self.deviations, strict=True)
        ]

    @cached_property
    def mean_bound(self) -> float:
        if self.stored is not None:
            return 0.0
        n = len(self.xs)
        rough = gamma(n) * math.fsum(map(abs, self.xs)) / n
        left = math.fsum(map(abs, self.deviations)) / n + rough
        return U * abs(self.mean[0]) + gamma(n + 2) * left

    @cached_property
    def var_bound(self) -> float:
        """Bound mean(e^2) - mean(e)^2, where e are deviations from a mean that is off a little."""
        if self.stored is not None:
            return 0.0
        n, size = len(self.xs), self.var + self.mean_bound**2
        return gamma(n + 10) * size + 2 * gamma(n + 2) * self.mean_bound * math.sqrt(size)

    @cached_property
    def scale_bound(self) -> float:
        """Relative, as it is where `gamma` stands for it."""
        relative = self.var_bound / (self.var + self.eps)
        return relative / (2 * (1 - relative)) + gamma(6)

    @cached_property
    def normalised_bounds(self) -> list[float]:
        shift = self.scale * (1 + self.scale_bound) * self.mean_bound * (1 + gamma(2))
        return [shift + abs(xh) * (self.scale_bound + gamma(6)) for xh in self.normalised]

    @cached_property
    def output_bounds(self) -> list[float]:
        w, b = abs(self.weight), abs(self.bias)
        parts = zip(self.normalised, self.normalised_bounds, strict=True)
        return [w * bound + gamma(5) * (w * abs(xh) + b) for xh, bound in parts]

    def parameter_bounds(self, grad: list[float]) -> tuple[float, float]:
        """Bound the gradients of weight and bias."""
        n, size = len(grad), math.fsum(map(abs, grad))
        parts = list(zip(grad, self.normalised, self.normalised_bounds, strict=True))
        from_xh = math.fsum(abs(g) * bound for g, _, bound in parts)
        from_sum = gamma(n + 4) * math.fsum(abs(g) * (abs(xh) + bound) for g, xh, bound in parts)
        return from_xh + from_sum, gamma(n + 1) * size

    def gradient_bounds(self, grad: list[float]) -> list[float]:
        n, factor = len(grad), abs(self.weight) * self.scale
        if self.stored is not None:
            return [factor * abs(g) * (self.scale_bound + gamma(6)) for g in grad]
        of_weight, of_bias = self.parameter_bounds(grad)
        mean = math.fsum(map(abs, grad)) / n
        product = math.fsum(abs(g * xh) for g, xh in zip(grad, self.normalised, strict=True)) / n
        return [
            factor
            * (1 + self.scale_bound)
            * (
                (of_bias + abs(xh) * of_weight) / n
                + bound * (product + of_weight / n)
                + (self.scale_bound + gamma(20)) * (abs(g) + mean + abs(xh) * product)
            )
            for g, xh, bound in zip(grad, self.normalised, self.normalised_bounds, strict=True)
        ]


class Case(NamedTuple):
    """What hypothesis draws: a shape, the arguments, and where the numbers lie."""

    shape: tuple[int, ...]
    eps: float
    momentum: float | None
    offset: float
    spread: float
    seed: int

    def batch(self, step: int = 0) -> Tensor:
        """Return a batch whose channels have different offsets and spreads."""
        values = numbers(*self.shape, seed=self.seed + step)
        channel = torch.arange(self.shape[1]).reshape(-1, *[1] * (len(self.shape) - 2))
        return values * self.spread / (channel + 1) + self.offset * (1 - channel)

    def layer(self) -> ReferenceBatchNorm:
        bn = ReferenceBatchNorm(self.shape[1], self.eps, self.momentum)
        with torch.no_grad():
            bn.weight.copy_(numbers(self.shape[1], seed=self.seed + 10))
            bn.bias.copy_(numbers(self.shape[1], seed=self.seed + 11))
        return bn


shapes = (
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.lists(st.integers(1, 3), max_size=3))
    .map(lambda drawn: (drawn[0], drawn[1], *drawn[2]))
    .filter(lambda shape: math.prod(shape) > shape[1])
)
cases = st.builds(
    Case,
    shape=shapes,
    eps=st.floats(1e-12, 1.0),
    momentum=st.none() | st.floats(-1.0, 2.0),
    offset=st.floats(-1e6, 1e6),
    spread=st.just(0.0) | st.floats(1e-4, 1e4),
    seed=st.integers(0, 2**32),
)


def channel_values(x: Tensor, channel: int) -> list[float]:
    return [float(value) for value in x.numpy()[:, channel].ravel()]


def assert_agrees(bn: ReferenceBatchNorm, x: Tensor, grad: Tensor) -> None:
    """Hold output and gradients in the present mode against plain Python."""
    stored = None if bn.training else (bn.running_mean.tolist(), bn.running_var.tolist())
    weights, biases = bn.weight.tolist(), bn.bias.tolist()
    gradients = bn.gradients(x, grad)
    y = bn(x).detach()
    assert y.shape == gradients.input.shape == x.shape
    for c in range(x.shape[1]):
        channel = Channel(
            channel_values(x, c),
            bn.eps,
            weights[c],
            biases[c],
            stored and (stored[0][c], stored[1][c]),
        )
        g = channel_values(grad, c)
        assert_within(y[:, c], channel.outputs, channel.output_bounds)
        assert_within(gradients.input[:, c], channel.gradient(g), channel.gradient_bounds(g))
        of_weight = math.fsum(a * b for a, b in zip(g, channel.normalised, strict=True))
        bounds = channel.parameter_bounds(g)
        assert_within(gradients.weight[c], [of_weight], bounds[:1])
        assert_within(gradients.bias[c], [math.fsum(g)], bounds[1:])


@calm
@given(case=cases)
def test_training_agrees_with_plain_python(case: Case) -> None:
    assert_agrees(case.layer(), case.batch(), numbers(*case.shape, seed=case.seed + 1))


@calm
@given(case=cases)
def test_eval_agrees_with_plain_python(case: Case) -> None:
    bn = case.layer().eval()
    bn.running_mean.copy_(case.offset + numbers(case.shape[1], seed=case.seed + 2))
    bn.running_var.copy_(case.spread * numbers(case.shape[1], seed=case.seed + 3).abs())
    assert_agrees(bn, case.batch(), numbers(*case.shape, seed=case.seed + 1))


@calm
@given(case=cases, steps=st.integers(1, 4))
def test_running_statistics_agree_with_plain_python(case: Case, steps: int) -> None:
    bn = case.layer()
    batches = [case.batch(step) for step in range(steps)]
    for x in batches:
        bn(x)
    for c in range(case.shape[1]):
        channels = [Channel(channel_values(x, c), case.eps, 1.0, 0.0) for x in batches]
        n = len(channels[0].xs)
        means = [(channel.mean[0], channel.mean_bound) for channel in channels]
        variances = [
            (channel.var * n / (n - 1), channel.var_bound * n / (n - 1)) for channel in channels
        ]
        for got, start, of_batches in (
            (bn.running_mean[c], 0.0, means),
            (bn.running_var[c], 1.0, variances),
        ):
            value, bound = Fraction(start), 0.0
            for count, (new, new_bound) in enumerate(of_batches, 1):
                m = Fraction(case.momentum) if case.momentum is not None else Fraction(1, count)
                keep, take = abs(float(1 - m)), abs(float(m))
                sizes = keep * (abs(float(value)) + bound) + take * (abs(new) + new_bound)
                bound = keep * bound + take * new_bound + gamma(7) * sizes
                value = (1 - m) * value + m * Fraction(new)
            if case.momentum is None:
                value = sum(Fraction(new) for new, _ in of_batches) / steps
            assert_within(got, [float(value)], [bound])
    assert bn.num_batches_tracked.item() == steps


@pytest.mark.parametrize("offset", [0.0, 1.0, -1e8, 1e8, 1e12, 1e15])
def test_statistics_are_exact_but_for_rounding_at_any_offset(offset: float) -> None:
    n = 1000
    values = numbers(8, n) + offset
    found = batch_statistics(values)
    for row, mean, var in zip(values, found.mean.tolist(), found.var.tolist(), strict=True):
        exact = [Fraction(value) for value in row.tolist()]
        true_mean = sum(exact) / n
        true_var = sum((value - true_mean) ** 2 for value in exact) / n
        # deviations are near 1, and the rough mean is off by gamma(n) |mean|
        mean_bound = U * abs(true_mean) + gamma(n + 2) * (1 + gamma(n) * (abs(offset) + 1))
        assert abs(Fraction(mean) - true_mean) <= mean_bound
        size = float(true_var) + float(mean_bound) ** 2
        var_bound = gamma(n + 4) * size + 2 * gamma(n + 2) * float(mean_bound) * math.sqrt(size)
        assert abs(Fraction(var) - true_var) <= var_bound


@pytest.mark.parametrize("offset", [0.0, 0.1, -1e6 / 3, 1e15])
@pytest.mark.parametrize("n", [2, 3, 7, 100, 1001])
def test_equal_values_have_no_variance_and_are_their_mean(offset: float, n: int) -> None:
    mean, var = batch_statistics(torch.full((2, n), offset, dtype=torch.float64))
    assert mean.tolist() == [offset, offset]
    assert var.tolist() == [0.0, 0.0]
