"""Correct layers keep to the bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import UNIT, Arithmetic
from pytest_bninvariants.batchnorm.cases import Batch, Case
from pytest_bninvariants.batchnorm.expectation import ReferenceTwin
from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm, batch_statistics, rows
from tests.batchnorm.tolerance.layers import (
    BF16,
    EASY,
    F16,
    F32,
    F64,
    PRECISIONS,
    Make,
    Setting,
    composed,
    excess,
    settings_of,
    torchs,
    truth,
    twin_of,
)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", [torchs, composed])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_correct_layers_keep_to_the_bounds(precision: str, make: Make, training: bool) -> None:
    for setting in settings_of(precision, 25 if training else 10):
        ratios = excess(make, setting, training=training)
        assert max(ratios.values()) <= 1, (ratios, setting)


@pytest.mark.parametrize("make", [torchs, composed])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bounds_hold_over_many_batches_of_one_layer(precision: str, make: Make) -> None:
    dtype, state, _ = PRECISIONS[precision]
    name = str(dtype).removeprefix("torch.")
    setting = Setting(batch=Batch(shape=(16, 3), dtype=name), state=state)
    layer = make(3, setting).train()
    setting.prepare(layer)
    twin = twin_of(setting)
    for seed in range(30):
        x = replace(setting.batch, seed=seed).tensor()
        training = seed % 4 != 3
        layer.train(training)
        twin.reference.train(training)
        y, expected = layer(x).detach().double(), twin.expect(x)
        for got, (value, bound) in (
            (y, expected.output),
            (layer.running_mean, twin.running_mean),
            (layer.running_var, twin.running_var),
        ):
            assert isinstance(got, Tensor)
            assert (got.double() - value).abs().le(bound).all(), seed
            assert bound.isfinite().all() or (got is y and dtype is BF16)


def test_a_batch_in_eval_leaves_the_bounds_of_the_statistics() -> None:
    twin, x = twin_of(EASY), EASY.x
    twin.expect(x)
    before = twin.running_mean, twin.running_var
    twin.reference.eval()
    twin.expect(x)
    for was, now in zip(before, (twin.running_mean, twin.running_var), strict=True):
        assert was.bound.gt(0).all()
        assert was.bound.equal(now.bound)


def test_bounds_of_the_plain_case_are_within_a_hundred_roundings_of_its_dtype() -> None:
    for dtype, state in ((F64, F64), (F32, F32)):
        name = str(dtype).removeprefix("torch.")
        setting = replace(EASY, batch=replace(EASY.batch, dtype=name), state=state)
        _, expected = truth(setting)
        for result, (value, bound) in expected.items():
            size = value.abs().max()
            assert (bound <= 1000 * UNIT[dtype] * (1 + size)).all(), result
            assert (bound > 0).all(), result


def test_a_weight_gradient_whose_sum_is_kept_in_half_keeps_to_its_bound() -> None:
    arithmetic = Arithmetic.for_dtypes(F16, F16)
    for seed in range(100):
        batch = Batch(
            shape=(1, 16, 3, 2),
            seed=seed,
            sigma=1e-5**0.5,
            kappa=1.0,
            rectified=True,
            dtype="float16",
        )
        x, g = batch.tensor(), Case(batches=(batch,), dtype="float16").gradient(0)
        _, expected, _ = ReferenceTwin(ReferenceBatchNorm(16), arithmetic).expect(x).gradients(g)
        true = batch_statistics(rows(x))
        total = ((rows(x) - true.mean[:, None]) * rows(g)).sum(1).to(F16).double()
        got = (total * (true.var + 1e-5).rsqrt()).to(F16).double()
        assert ((got - expected.value).abs() <= expected.bound).all()
