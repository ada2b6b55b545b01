"""The arithmetic that the bounds follow from: roundings, dtypes, depths of sums."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_bninvariants.batchnorm.arithmetic import (
    TINY,
    UNIT,
    Arithmetic,
    cascade_depth,
    gamma,
    sum_depth,
)
from pytest_bninvariants.batchnorm.expectation import BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm
from pytest_bninvariants.batchnorm.tolerance import running_bound
from tests.batchnorm.tolerance.layers import BF16, F16, F32, F64, PRECISIONS


@pytest.mark.parametrize("unit", UNIT.values())
def test_gamma_is_infinite_from_where_its_roundings_reach_1(unit: float) -> None:
    assert gamma(0, unit) == 0
    assert gamma(1, unit) == unit / (1 - unit)
    assert gamma(1 / unit, unit) == math.inf
    assert gamma(2 / unit, unit) == math.inf
    assert 1 / unit - 1 <= gamma(1 / unit - 1, unit) * 1.01 < math.inf
    values = [gamma(k, unit) for k in range(1, 200, 7)]
    assert values == sorted(values)
    assert all(gamma(k, unit) >= k * unit for k in range(1, 200, 7))


def in_precision(precision: str) -> dict[str, BoundedValue]:
    """Return the bounds of one and the same batch, whose values are in bfloat16 and float16."""
    dtype, state, _ = PRECISIONS[precision]
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)
    g = torch.randn(16, 3, generator=torch.Generator().manual_seed(2)).bfloat16().to(dtype)
    twin = ReferenceTwin(ReferenceBatchNorm(3), Arithmetic.for_dtypes(dtype, state))
    expected = twin.expect(x)
    of_input, of_weight, of_bias = expected.gradients(g)
    return {
        "output": expected.output,
        "mean": twin.running_mean,
        "var": twin.running_var,
        "input": of_input,
        "weight": of_weight,
        "bias": of_bias,
    }


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("float64", "float32"),
        ("float32", "float16"),
        ("float32", "bfloat16"),
        ("float16", "bfloat16"),
        ("float16 in float32", "float16"),
        ("bfloat16 in float32", "bfloat16"),
    ],
)
def test_a_wider_dtype_has_smaller_bounds(wide: str, narrow: str) -> None:
    loose = in_precision(narrow)
    for name, (_, bound) in in_precision(wide).items():
        assert (bound < loose[name].bound).all(), name


@pytest.mark.parametrize("half", [F16, BF16])
def test_only_a_layer_whose_tensors_are_all_half_may_compute_in_half(half: torch.dtype) -> None:
    all_half, mixed = Arithmetic.for_dtypes(half, half), Arithmetic.for_dtypes(half, F32)
    assert (all_half.unit, all_half.sum_unit) == (UNIT[half], UNIT[F32])
    assert (mixed.unit, mixed.sum_unit) == (UNIT[F32], UNIT[F32])
    value = torch.ones(1, dtype=F64)
    assert mixed.storing_error(value, half) == UNIT[half] + TINY[half]
    assert mixed.storing_error(value, F32) == TINY[F32]


def test_float64_anywhere_asks_for_float64() -> None:
    for pair in ((F64, F64), (F32, F64), (F64, F32), (BF16, F64)):
        assert Arithmetic.for_dtypes(*pair).unit == UNIT[F64]
        assert Arithmetic.for_dtypes(*pair).sum_unit == UNIT[F64]


def test_the_error_of_the_reference_is_added() -> None:
    bound = torch.ones(1, dtype=F64)
    assert Arithmetic.for_dtypes(F64, F64).with_reference_error(bound) == 2
    assert Arithmetic.for_dtypes(F32, F32).with_reference_error(bound) == 1 + 2.0**-29


@pytest.mark.parametrize("dtype", [F64, F16, BF16])
@pytest.mark.parametrize("rowwise", [True, False])
def test_the_depth_on_the_cpu_is_the_number_of_values_but_in_float32(
    dtype: torch.dtype, rowwise: bool
) -> None:
    assert sum_depth(7, 11, dtype, "cpu", rowwise=rowwise, threads=4) == 78


def test_the_depth_of_float32_counts_samples_where_positions_lie_side_by_side() -> None:
    assert sum_depth(7, 11, F32, "cpu", rowwise=True, threads=4) == 7 + 11 + 4
    assert sum_depth(7, 10**6, F32, "cpu", rowwise=True, threads=4) == 7 + 4 * 64 + 32 + 4


def test_the_depth_of_float32_is_shared_among_threads_where_channels_lie_side_by_side() -> None:
    assert sum_depth(1000, 1000, F32, "cpu", rowwise=False, threads=4) == 250_001 + 4
    assert sum_depth(1000, 1000, F32, "cpu", rowwise=False, threads=1) == 1_000_001 + 1
    assert sum_depth(10, 1, F32, "cpu", rowwise=False, threads=8) == 10 + 8


def test_the_depth_on_a_gpu_is_a_warps_share_and_a_tree() -> None:
    for dtype in UNIT:
        for rowwise in (True, False):
            assert sum_depth(64, 100, dtype, "cuda", rowwise=rowwise, threads=4) == 200 + 16


def test_depths_grow_with_the_number_of_values() -> None:
    sizes = [2**k for k in range(25)]
    for device in ("cpu", "cuda"):
        for dtype in UNIT:
            for rowwise in (True, False):
                depths = [sum_depth(1, n, dtype, device, rowwise=rowwise, threads=2) for n in sizes]
                assert depths == sorted(depths)
                assert all(depth >= 1 for depth in depths)
    cascade = [cascade_depth(n) for n in sizes]
    assert cascade == sorted(cascade)
    assert all(depth <= n for depth, n in zip(cascade, sizes, strict=True))
    assert cascade[-1] == 4 * 128 + 32


@pytest.mark.parametrize(("roundings", "within"), [(5, True), (6, False)])
def test_a_batch_may_round_five_times_on_its_way_into_a_running_statistic(
    roundings: int, within: bool
) -> None:
    zero, batch = torch.zeros(1, dtype=F64), torch.full((1,), 3.0, dtype=F64)
    bound = running_bound(
        zero, zero, batch / 8, batch, zero, 1 / 8, Arithmetic.for_dtypes(F32, F32)
    )
    off = batch / 8 * ((1 + UNIT[F32]) ** roundings - 1)
    assert bool(off <= bound) == within
