"""What a batch comes to, beside exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from pytest_bninvariants.batchnorm import batch_summary
from pytest_bninvariants.batchnorm.batch_summary import BatchSums, depth_of, summarise

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return values.to(dtype)


def exact(x: Tensor, channel: int) -> tuple[float, float, float]:
    """Return a channel's mean, variance and mean magnitude, each rounded once."""
    values = [Fraction(value) for value in x.select(1, channel).flatten().tolist()]
    mean = sum(values) / len(values)
    var = sum((value - mean) ** 2 for value in values) / len(values)
    return float(mean), float(var), float(sum(map(abs, values)) / len(values))


def assert_exact(x: Tensor, relative: float) -> None:
    found = summarise(x, depth_of(x)).vectors
    for channel in range(x.shape[1]):
        mean, var, magnitude = exact(x, channel)
        assert found[0, channel].item() == pytest.approx(mean, rel=0, abs=relative * magnitude)
        assert found[1, channel].item() == pytest.approx(var, rel=relative, abs=0)
        assert found[2, channel].item() == pytest.approx(magnitude, rel=1e-13, abs=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 3), (4, 3, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5)])
def test_it_is_exact_but_for_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_exact(batch(*shape, dtype=dtype), 1e-13)


@pytest.mark.parametrize("offset", [1e3, -1e5, 1e7])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_a_large_mean_costs_no_digits_of_the_variance(offset: float, dtype: torch.dtype) -> None:
    assert_exact(batch(8, 3, 6, 6, dtype=dtype) * 3 + offset, 1e-13)


def test_a_first_value_far_out_costs_no_digits_that_float32_has() -> None:
    x = batch(400, 2)
    x[0] = 1e4
    assert_exact(x, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_of_a_batch_come_to_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(batch_summary, "_PIECE_ON_CPU", 7)
    assert_exact(batch(5, 3, 2, 2, dtype=dtype), 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_layout_is_written_to_or_copied_wrongly(dtype: torch.dtype) -> None:
    x = batch(4, 3, 5, 6, dtype=dtype)
    kept = x.clone()
    for each in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[::2, :, 1:]):
        assert_exact(each, 1e-13)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 0.1, -3000.0])
def test_one_value_a_channel_is_constant(value: float, dtype: torch.dtype) -> None:
    x = torch.full((4, 2, 3), value, dtype=dtype)
    x[:, 1] = 7
    assert summarise(x, 1).is_constant
    x[3, 1, 2] = 8
    assert not summarise(x, 1).is_constant


def test_large_means_with_the_smallest_spread_are_not_constant() -> None:
    x = torch.full((64, 1), 1e6)
    x[-1] = torch.nextafter(x[-1], torch.tensor(2e6))
    assert not summarise(x, 1).is_constant


def test_what_is_not_finite_stays_in_its_channel() -> None:
    x = batch(6, 3)
    x[2, 1] = float("nan")
    found = summarise(x, 1)
    assert found.vectors.isfinite().all(0).tolist() == [True, False, True]
    assert not found.is_constant


@pytest.mark.parametrize("offset", [0.0, 1e3, -6e4])
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("shape", [(9, 3), (4, 3, 5), (2, 3, 4, 5), (1, 3, 2, 3, 4)])
def test_sums_of_the_host_are_as_exact_as_they_say(
    shape: tuple[int, ...], dtype: torch.dtype, offset: float
) -> None:
    x = (batch(*shape) + offset).to(dtype)
    summary = BatchSums.from_values(x, depth_of(x)).summary
    error = summary.variance_error
    for channel in range(x.shape[1]):
        mean, var, magnitude = exact(x, channel)
        assert summary.vectors[0, channel].item() == pytest.approx(mean, rel=1e-13, abs=1e-13)
        assert abs(summary.vectors[1, channel].item() - var) <= error[channel] + 1e-15 * var
        assert summary.vectors[2, channel].item() >= magnitude * (1 - 1e-6)


def test_sums_do_not_depend_on_the_layout_and_write_nothing() -> None:
    x = batch(4, 3, 5, 6)
    kept = x.clone()
    views = (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[::2, :, 1:])
    for each in views:
        sums, summary = BatchSums.from_values(each, 9), summarise(each, 9)
        torch.testing.assert_close(sums.summary.vectors[:2], summary.vectors[:2], rtol=1e-6, atol=0)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("value", [0.0, 0.1, -3000.0])
def test_sums_tell_one_value_a_channel(value: float, dtype: torch.dtype) -> None:
    x = torch.full((4, 2, 3), value, dtype=dtype)
    x[:, 1] = 7
    assert BatchSums.from_values(x, 1).is_constant
    x[3, 1, 2] = 8
    assert not BatchSums.from_values(x, 1).is_constant
    assert not BatchSums.from_values(x.flip(1), 1).is_constant


def test_sums_keep_what_is_not_finite_in_its_channel() -> None:
    x = batch(6, 3)
    x[2, 1] = float("nan")
    sums = BatchSums.from_values(x, 1)
    assert sums.summary.vectors.isfinite().all(0).tolist() == [True, False, True]
    assert not sums.is_constant


def test_equal_batches_have_equal_keys_and_others_have_not() -> None:
    x = batch(6, 3, 4)
    keys = [BatchSums.from_values(each, 1).key for each in (x, x.clone(), x.flip(1), 2 * x)]
    assert torch.equal(keys[0], keys[1])
    assert not any(torch.equal(keys[0], other) for other in keys[2:])
