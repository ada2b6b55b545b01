"""The drift of statistics is the divergence that torch.distributions computes, with limits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pytest_bninvariants.batchnorm.drift import statistics_drift

NAN, INF = math.nan, math.inf
MEANS = st.floats(-1e3, 1e3)
VARIANCES = st.floats(1e-6, 1e6)
CHANNELS = st.lists(st.tuples(MEANS, VARIANCES, MEANS, VARIANCES), min_size=1, max_size=5)


def columns(channels: list[tuple[float, ...]]) -> list[Tensor]:
    return list(torch.tensor(channels, dtype=torch.float64).T)


def drift(m0: float, v0: float, m1: float, v1: float, eps: float = 0.0) -> float:
    return statistics_drift(*columns([(m0, v0, m1, v1)]), eps=eps)


@given(CHANNELS, st.floats(0, 1))
def test_it_is_the_mean_of_torchs_divergences(
    channels: list[tuple[float, float, float, float]], eps: float
) -> None:
    m0, v0, m1, v1 = columns(channels)
    before, after = Normal(m0, (v0 + eps).sqrt()), Normal(m1, (v1 + eps).sqrt())
    expected = float(kl_divergence(before, after).mean())
    found = statistics_drift(m0, v0, m1, v1, eps)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def exactly(m0: float, v0: float, m1: float, v1: float) -> float:
    """Return the closed form, computed with fifty digits."""
    with localcontext(prec=50):
        ratio = Decimal(v0) / Decimal(v1)
        shift = (Decimal(m0) - Decimal(m1)) ** 2 / Decimal(v1)
        return float((shift + ratio - 1 - ratio.ln()) / 2)


@pytest.mark.parametrize("factor", [1e-12, 1e-8, 0.99e-4, 1.01e-4, 1e-2, 0.49, 0.51, 3.0, 1e9])
@pytest.mark.parametrize("sign", [1, -1])
def test_it_keeps_its_digits_however_little_the_variance_moved(factor: float, sign: int) -> None:
    v1 = 1 + sign * factor if sign * factor > -1 else 1 / factor
    assert drift(0, 1, 0, v1) == pytest.approx(exactly(0, 1, 0, v1), rel=1e-9)
    assert drift(0, v1, 0, 1) == pytest.approx(exactly(0, v1, 0, 1), rel=1e-9)


@given(
    CHANNELS,
    st.floats(-1e3, 1e3).filter(lambda factor: abs(factor) > 1e-3),
    st.floats(-1e3, 1e3),
)
def test_it_is_free_of_scale(
    channels: list[tuple[float, float, float, float]], factor: float, offset: float
) -> None:
    m0, v0, m1, v1 = columns(channels)
    scaled = (m0 * factor + offset, v0 * factor**2, m1 * factor + offset, v1 * factor**2)
    expected = statistics_drift(m0, v0, m1, v1)
    rounding = 1e-9 * max(1.0, float((offset**2 + m0.square().max()) / v1.min()))
    assert statistics_drift(*scaled) == pytest.approx(expected, rel=1e-6, abs=rounding)


def test_it_tells_how_far_outputs_are_from_the_normal_distribution_that_came_before() -> None:
    x = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    m0, v0, m1, v1 = 2.0, 4.0, 3.0, 1.0
    y = (x * v0**0.5 + m0 - m1) / v1**0.5  # inputs of before, normalised with what is there now
    whole = drift(float(y.mean()), float(y.var()), 0, 1)
    assert drift(m0, v0, m1, v1) == pytest.approx(whole, rel=0.02)
    assert drift(m1, v1, m0, v0) != pytest.approx(whole, rel=0.5)


LIMITS = {
    "the same": ((1, 2, 1, 2), 0.0),
    "the same, with variance zero": ((1, 0, 1, 0), 0.0),
    "the same, though negative": ((1, -2, 1, -2), 0.0),
    "the same, though no numbers": ((NAN, NAN, NAN, NAN), 0.0),
    "the same, though infinite": ((INF, INF, INF, INF), 0.0),
    "zeros of two signs": ((0.0, 1, -0.0, 1), 0.0),
    "a mean alone": ((0, 1, 1, 1), 0.5),
    "variance that becomes zero": ((0, 1, 0, 0), INF),
    "variance that was zero": ((0, 0, 0, 1), INF),
    "a mean that moves while variance is zero": ((0, 0, 1, 0), INF),
    "variance that becomes negative": ((0, 1, 0, -1), INF),
    "variance that was negative": ((0, -1, 0, 1), INF),
    "a mean that is no number": ((0, 1, NAN, 1), INF),
    "a mean that was no number": ((NAN, 1, 0, 1), INF),
    "variance that is no number": ((0, 1, 0, NAN), INF),
    "an infinite mean": ((0, 1, -INF, 1), INF),
    "infinite variance": ((0, 1, 0, INF), INF),
    "more than float64 holds": ((-1e300, 1, 1e300, 1), INF),
    "variances at both ends of float64": ((0, 1e-300, 0, 1e300), (600 * math.log(10) - 1) / 2),
}


@pytest.mark.parametrize(("statistics", "expected"), LIMITS.values(), ids=LIMITS)
def test_it_has_limits(statistics: tuple[float, ...], expected: float) -> None:
    assert drift(*statistics) == pytest.approx(expected)


def test_eps_keeps_it_finite_where_a_variance_is_zero() -> None:
    assert drift(0, 1, 0, 0, eps=1e-5) == pytest.approx(exactly(0, 1 + 1e-5, 0, 1e-5))
    assert drift(0, -1, 0, 1, eps=1e-5) == INF


def test_one_channel_that_is_lost_makes_the_mean_infinite() -> None:
    assert statistics_drift(*columns([(0, 1, 1, 1), (0, 1, NAN, 1)])) == INF
    assert statistics_drift(*columns([(0, 1, 1, 1), (0, 1, 0, 1)])) == 0.25


def test_a_layer_without_channels_does_not_drift() -> None:
    nothing = torch.empty(0)
    assert statistics_drift(nothing, nothing, nothing, nothing) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_dtype_is_computed_in_float64(dtype: torch.dtype) -> None:
    four = [each.to(dtype) for each in columns([(0, 1, 200, 1e-3)])]
    assert statistics_drift(*four) == pytest.approx(statistics_drift(*[t.double() for t in four]))
    assert statistics_drift(*four) > 1e7
