"""Layers with a defect exceed the bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor, nn

from tests.batchnorm.tolerance.layers import (
    EASY,
    F32,
    F64,
    PRECISIONS,
    Composed,
    Make,
    Setting,
    excess,
    truth,
)


class Biased(Composed):
    def unbiased(self, var: Tensor, n: int) -> Tensor:
        return var


class LargeEps(Composed):
    def epsilon(self) -> float:
        return self.eps * 1.5


class HalfStatistics(Composed):
    def statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x.half(), axes)
        return mean.to(x.dtype), var.to(x.dtype)


class DetachedVariance(Composed):
    def statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x, axes)
        return mean, var.detach()


class DetachedMean(Composed):
    def statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x, axes)
        return mean.detach(), var


class OnePass(Composed):
    def statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        mean = x.mean(axes)
        return mean, (x.square().mean(axes) - mean.square()).clamp(min=0)


def planted(defect: type[Composed]) -> Make:
    def make(channels: int, setting: Setting) -> nn.Module:
        return defect(channels, eps=setting.eps, momentum=setting.momentum).to(setting.state)

    return make


def varied(setting: Setting, **batch: object) -> list[Setting]:
    """Return settings for ten seeds."""
    made = replace(setting.batch, **batch)  # type: ignore[arg-type]
    return [replace(setting, batch=replace(made, seed=seed)) for seed in range(10)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_biased_running_variance_exceeds_its_bound_at_20_values(dtype: str) -> None:
    state = F64 if dtype == "float64" else F32
    for setting in varied(replace(EASY, state=state), dtype=dtype):
        ratios = excess(planted(Biased), setting)
        assert ratios.pop("running_var") > 1
        assert max(ratios.values()) <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_and_a_half_times_eps_exceeds_the_bounds_where_the_variance_is_near_eps(
    precision: str,
) -> None:
    dtype, state, _ = PRECISIONS[precision]
    name = str(dtype).removeprefix("torch.")
    setting = replace(EASY, eps=1e-3, state=state)
    for each in varied(setting, sigma=1e-3**0.5, shape=(64, 2), dtype=name):
        assert excess(planted(LargeEps), each)["output"] > 1


def test_statistics_in_float16_exceed_the_bounds_of_a_float32_layer() -> None:
    for setting in varied(EASY, kappa=1.0):
        ratios = excess(planted(HalfStatistics), setting)
        assert ratios["output"] > 1
        assert ratios["running_mean"] > 1
        assert ratios["running_var"] > 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_without_the_term_of_the_variance_exceeds_its_bound(precision: str) -> None:
    dtype, state, _ = PRECISIONS[precision]
    name = str(dtype).removeprefix("torch.")
    for setting in varied(replace(EASY, state=state), dtype=name):
        ratios = excess(planted(DetachedVariance), setting)
        assert ratios.pop("input") > 1
        assert max(ratios.values()) <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_without_the_term_of_the_mean_exceeds_its_bound(precision: str) -> None:
    dtype, state, _ = PRECISIONS[precision]
    name = str(dtype).removeprefix("torch.")
    for setting in varied(replace(EASY, state=state), dtype=name):
        assert excess(planted(DetachedMean), setting)["input"] > 1


def test_a_variance_as_a_difference_of_squares_exceeds_the_bounds_at_kappa_1000() -> None:
    for setting in varied(EASY, kappa=1e3, shape=(20, 3)):
        expected, _ = truth(setting)
        assert expected.bounds.posed.all()
        assert excess(planted(OnePass), setting)["running_var"] > 1
