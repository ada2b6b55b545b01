"""The bounds are those of docs/tolerance.md, written down a second time for one channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import TINY, UNIT, Arithmetic
from pytest_bninvariants.batchnorm.reference import BatchNormGradients, Statistics
from pytest_bninvariants.batchnorm.tolerance import (
    Normalisation,
    combining_error,
    gradient_bounds,
    normalisation_bounds,
    output_bound,
    running_bound,
    statistics_bounds,
    sums_of_squares_error,
)
from tests.batchnorm.tolerance.layers import BF16, F16, F32, F64

X, G = [0.5, -1.25, 3.0], [1.5, -0.25, 0.75]
EPS, WEIGHT, BIAS, DEPTH = 0.125, -1.5, 0.75, 4
MEAN = sum(X) / 3
VAR = sum((x - MEAN) ** 2 for x in X) / 3
KAPPA_VAR = math.sqrt(VAR * (VAR + MEAN**2))


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-13)


def row(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=F64)


def channel(value: float) -> Tensor:
    return torch.tensor([value], dtype=F64)


@dataclass(frozen=True)
class Units:
    """The units of the page, by dtypes."""

    input: torch.dtype
    state: torch.dtype
    u: float
    s: float
    operations: torch.dtype

    @property
    def arithmetic(self) -> Arithmetic:
        return Arithmetic.for_dtypes(self.input, self.state)

    def gamma(self, k: int, unit: float | None = None) -> float:
        unit = unit or self.u
        return k * unit / (1 - k * unit)

    @property
    def sums(self) -> float:  # G of the page
        return self.gamma(DEPTH, self.s)

    def stored(self, value: float, dtype: torch.dtype) -> float:
        rounds = dtype in (F16, BF16) or UNIT[dtype] > self.u
        return (UNIT[dtype] * abs(value) if rounds else 0.0) + TINY[dtype]

    def lost(self, *factors: float) -> float:
        return 4 * TINY[self.operations] * math.prod(1 + abs(each) for each in factors)

    def with_reference(self, bound: float) -> float:
        return bound * (1 + 2.0**-53 / self.u)

    @property
    def dmean(self) -> float:
        return self.sums * sum(map(abs, X)) / 3 + self.gamma(2) * abs(MEAN)

    @property
    def dvar(self) -> float:
        two_passes = (self.sums + self.gamma(4)) * (VAR + self.dmean**2) + self.dmean**2
        return two_passes + self.sums * KAPPA_VAR

    @property
    def r(self) -> float:
        return 1 / math.sqrt(VAR + EPS)

    @property
    def dr(self) -> float:
        return self.dvar / (2 * (VAR + EPS - self.dvar)) + self.gamma(3)


PRECISIONS = {
    "float32": Units(F32, F32, 2.0**-24, 2.0**-24, F32),
    "float64": Units(F64, F64, 2.0**-53, 2.0**-53, F64),
    "half in float32": Units(BF16, F32, 2.0**-24, 2.0**-24, F32),
    "all in half": Units(F16, F16, 2.0**-11, 2.0**-24, F16),
}
IN_EACH = pytest.mark.parametrize("units", PRECISIONS.values(), ids=PRECISIONS)


def normalisation(units: Units, *, from_batch: bool = True) -> Normalisation:
    return Normalisation(
        values=row(X),
        statistics=Statistics(channel(MEAN), channel(VAR)),
        errors=Statistics(channel(units.dmean), channel(units.dvar)),
        eps=EPS,
        weight=channel(WEIGHT),
        bias=channel(BIAS),
        from_batch=from_batch,
        depth=DEPTH,
        arithmetic=units.arithmetic,
    )


@IN_EACH
def test_statistics(units: Units) -> None:
    true = Statistics(channel(MEAN), channel(VAR))
    bounds = statistics_bounds(row(X), true, DEPTH, units.arithmetic)
    assert bounds.mean.item() == near(units.dmean)
    assert bounds.var.item() == near(units.dvar)


def test_a_sum_of_squares_beyond_half_of_float16_has_no_bound() -> None:
    half = PRECISIONS["all in half"].arithmetic
    for var, bounded in ((65504 / 6, True), (65504 / 6 + 1, False)):
        true = Statistics(channel(0.0), channel(var))
        assert statistics_bounds(row(X), true, DEPTH, half).var.isfinite().item() == bounded


def test_a_sum_without_a_bound_leaves_none_to_the_statistics() -> None:
    true = Statistics(channel(0.0), channel(0.0))
    bounds = statistics_bounds(row([0.0]), true, 2**24, PRECISIONS["float32"].arithmetic)
    assert [bounds.mean.item(), bounds.var.item()] == [math.inf, math.inf]


@IN_EACH
def test_the_scale(units: Units) -> None:
    bounds = normalisation(units).bounds
    assert (bounds.mean.item(), bounds.var.item()) == (units.dmean, units.dvar)
    assert bounds.scale.item() == near(units.dr)
    assert bounds.posed.item()


@pytest.mark.parametrize(("share", "posed"), [(0.49, True), (0.5, False), (0.51, False)])
def test_a_variance_that_is_off_by_half_of_itself_leaves_the_channel_ill_posed(
    share: float, posed: bool
) -> None:
    true = Statistics(channel(MEAN), channel(VAR))
    errors = Statistics(channel(0.0), channel(share * (VAR + EPS)))
    bounds = normalisation_bounds(true, errors, EPS, PRECISIONS["float32"].arithmetic)
    assert bounds.posed.item() == posed
    assert bounds.scale.isfinite().item()


@IN_EACH
def test_the_output(units: Units) -> None:
    w, r, dr = abs(WEIGHT), units.r, units.dr
    bounds = output_bound(normalisation(units), row([(x - MEAN) * r * WEIGHT + BIAS for x in X]))
    for x, bound in zip(X, bounds[0].tolist(), strict=True):
        y = (x - MEAN) * r * WEIGHT + BIAS
        close = units.dmean + units.gamma(3) * (abs(x) + abs(MEAN))
        far = abs(x - MEAN) * w * r * (dr + units.gamma(4))
        dy = w * r * (1 + dr) * (1 + units.gamma(4)) * close + far + units.gamma(3) * abs(BIAS)
        dy += units.u * abs(y) + units.stored(y, units.input) + units.lost(r, w)
        assert bound == near(units.with_reference(dy))


@IN_EACH
@pytest.mark.parametrize("m", [0.25, 1.0, 1.5])
def test_a_running_statistic(units: Units, m: float) -> None:
    old, dold, batch, dbatch = -2.0, 1e-3, 3.0, 1e-4
    new = (1 - m) * old + m * batch
    five = units.gamma(5, max(units.u, UNIT[units.state]))
    reached = (abs(1 - m) + abs(m)) * (abs(old) + dold) + abs(m) * (abs(batch) + dbatch)
    expected = abs(1 - m) * dold + abs(m) * dbatch + five * reached + units.stored(new, units.state)
    values = [channel(each) for each in (old, dold, new, batch, dbatch)]
    bound = running_bound(*values, m, units.arithmetic)  # type: ignore[arg-type]
    assert bound.item() == near(units.with_reference(expected))


def test_what_is_mixed_with_something_unbounded_is_unbounded() -> None:
    zero, inf = channel(0.0), channel(math.inf)
    for old, batch in ((inf, zero), (zero, inf)):
        for m in (0.0, 1.0):
            bound = running_bound(zero, old, zero, zero, batch, m, PRECISIONS["float32"].arithmetic)
            assert bound.item() == math.inf


def true_gradients(r: float, *, from_batch: bool) -> BatchNormGradients:
    xh = [(x - MEAN) * r for x in X]
    weight, bias = sum(g * h for g, h in zip(G, xh, strict=True)), sum(G)
    inner = [g - (bias + h * weight) / 3 if from_batch else g for g, h in zip(G, xh, strict=True)]
    return BatchNormGradients(
        row([WEIGHT * r * each for each in inner]), channel(weight), channel(bias)
    )


@IN_EACH
@pytest.mark.parametrize("from_batch", [True, False])
def test_gradients(units: Units, from_batch: bool) -> None:
    r, dr, dmean, n, sums, gamma = units.r, units.dr, units.dmean, 3, units.sums, units.gamma
    true = true_gradients(r, from_batch=from_batch)
    bounds = gradient_bounds(normalisation(units, from_batch=from_batch), row(G), true)
    weight, bias, size = true.weight.item(), true.bias.item(), sum(map(abs, G))

    dbias = (sums + units.u) * size
    assert bounds.bias.item() == near(units.with_reference(dbias + units.stored(bias, units.state)))

    p = [abs(x) + abs(MEAN) for x in X]
    by_sum = (sums + gamma(3)) * sum(abs(g) * each for g, each in zip(G, p, strict=True))
    dweight = r * (1 + dr) * (by_sum + dmean * (1 + sums) * size) + abs(weight) * (dr + gamma(2))
    stored = units.stored(weight, units.state) + units.lost(r)
    assert bounds.weight.item() == near(units.with_reference(dweight + stored))

    q, k = abs(weight) / n, abs(bias) / n
    dq, dk = dweight / n + gamma(2) * q, dbias / n + units.u * k
    for x, g, each, dx, bound in zip(
        X, G, p, true.input[0].tolist(), bounds.input[0].tolist(), strict=True
    ):
        xh = abs(x - MEAN) * r
        inner = gamma(8) * abs(g) + dk + gamma(8) * k
        inner += xh * (dq + q * (dr + 2 * gamma(8))) + r * (1 + dr) * dmean * (q + dq)
        inner += gamma(3) * r * (1 + dr) * q * each + (sums + units.u) * q
        dinput = abs(dx) * (dr + gamma(8)) + units.stored(dx, units.input) + units.lost(r, WEIGHT)
        if from_batch:
            dinput += abs(WEIGHT) * r * (1 + dr) * inner
        assert bound == near(units.with_reference(dinput))


@IN_EACH
def test_statistics_over_ranks(units: Units) -> None:
    true = Statistics(channel(MEAN), channel(VAR))
    combined = 2 * (units.sums + units.gamma(2)) * KAPPA_VAR + units.gamma(8) * (VAR + EPS)
    assert combining_error(true, EPS, DEPTH, units.arithmetic).item() == near(combined)
    squares = (3 * units.sums + units.gamma(8)) * (VAR + MEAN**2)
    assert sums_of_squares_error(true, DEPTH, units.arithmetic).item() == near(squares)
