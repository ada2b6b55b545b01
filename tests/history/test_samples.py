"""Samples of statistics become drifts, bands and the curves of those channels that moved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.drift import statistics_drift
from pytest_bninvariants.history.samples import LayerStatistics, Sample, layer_histories, spread_out


def sample(mean: Tensor, var: Tensor | None = None, name: str = "bn") -> Sample:
    return {name: LayerStatistics(mean, torch.ones_like(mean) if var is None else var)}


def test_a_drift_is_that_of_each_pair_and_none_where_the_bytes_are_the_same() -> None:
    zeros, ones = torch.zeros(3), torch.ones(3)
    (layer,) = layer_histories([sample(zeros), sample(ones), sample(ones.clone())], {"bn": 0.5})
    expected = statistics_drift(zeros, torch.ones(3), ones, torch.ones(3), eps=0.5)
    assert layer.drifts == (expected, None)
    assert layer.drifts[0] == pytest.approx(0.5 / 1.5)


def test_a_change_of_a_zeros_sign_is_a_change_without_drift() -> None:
    (layer,) = layer_histories([sample(torch.zeros(2)), sample(-torch.zeros(2))], {})
    assert layer.drifts == (0.0,)


def test_equal_bytes_of_another_dtype_are_a_change() -> None:
    half, other = (torch.zeros(2, dtype=dtype) for dtype in (torch.float16, torch.bfloat16))
    (layer,) = layer_histories([sample(half, half), sample(other, other)], {})
    assert layer.drifts == (0.0,)


def test_a_band_has_the_least_the_mean_and_the_largest_of_the_channels() -> None:
    (layer,) = layer_histories([sample(torch.tensor([1.0, 2.0, 6.0]))] * 2, {})
    assert (layer.mean.low, layer.mean.middle, layer.mean.high) == ((1, 1), (3, 3), (6, 6))
    assert layer.count == 3
    assert layer.channels == ()


def test_the_channels_that_moved_most_are_kept() -> None:
    start = torch.zeros(20)
    end = start.clone()
    end[[3, 17]] = torch.tensor([5.0, -4.0])
    (layer,) = layer_histories([sample(start), sample(end)], {})
    numbers = [channel.number for channel in layer.channels]
    assert len(numbers) == 8
    assert {3, 17} <= set(numbers)
    assert next(c.mean for c in layer.channels if c.number == 3) == (0, 5)


def test_a_channel_moved_by_its_own_standard_deviation_or_by_its_variance() -> None:
    """Nine channels moved: one a little and with a large variance, of which it is not much."""
    mean, var = torch.zeros(9), torch.ones(9)
    var[0] = 1e6
    later, changed = mean.clone(), var.clone()
    later[:5] = torch.tensor([50.0, 1.0, 1.0, 1.0, 1.0])
    changed[5:] = 3.0
    (layer,) = layer_histories([sample(mean, var), sample(later, changed)], {})
    assert [channel.number for channel in layer.channels] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_statistics_that_are_not_finite_drift_without_end() -> None:
    (layer,) = layer_histories([sample(torch.zeros(2)), sample(torch.tensor([0, math.nan]))], {})
    assert layer.drifts == (math.inf,)
    assert math.isnan(layer.mean.high[1])


def test_a_layer_that_some_samples_lack_or_have_otherwise_is_left_out() -> None:
    both = {**sample(torch.zeros(2), name="a"), **sample(torch.zeros(2), name="b")}
    other = {**sample(torch.zeros(2), name="a"), **sample(torch.zeros(3), name="b")}
    assert [each.name for each in layer_histories([both, other], {})] == ["a"]
    assert [
        each.name for each in layer_histories([both, sample(torch.zeros(2), name="b")], {})
    ] == ["b"]


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (1000, 257), (258, 257)])
def test_numbers_are_spread_from_the_first_to_the_last(count: int, most: int) -> None:
    numbers = spread_out(count, most)
    assert (numbers[0], numbers[-1], len(numbers)) == (0, count - 1, min(count, most))
    assert numbers == sorted(set(numbers))
