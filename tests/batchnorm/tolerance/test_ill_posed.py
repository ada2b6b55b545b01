"""Where nothing bounds a result its bound is infinite, and never NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pytest_bninvariants.batchnorm import batch_summary
from pytest_bninvariants.batchnorm.arithmetic import Arithmetic
from pytest_bninvariants.batchnorm.cases import Batch
from pytest_bninvariants.batchnorm.expectation import ReferenceTwin
from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm, Statistics, batch_statistics
from pytest_bninvariants.batchnorm.tolerance import normalisation_bounds, statistics_bounds
from tests.batchnorm.tolerance.layers import BF16, F16, F32, F64, Setting, truth


def flagged(var: float, dvar: float, eps: float) -> bool:
    """Return whether a channel with this variance and bound is ill-posed."""
    one = torch.ones(1, dtype=F64)
    a = Arithmetic.for_dtypes(F32, F32)
    bounds = normalisation_bounds(
        Statistics(0 * one, var * one), Statistics(one, dvar * one), eps, a
    )
    assert bounds.scale.isfinite().all()
    return not bool(bounds.posed)


@pytest.mark.parametrize("var", [0.0, 1e-12, 0.75, 3e4])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.25])
def test_a_channel_is_ill_posed_exactly_from_half_of_its_variance_and_eps(
    var: float, eps: float
) -> None:
    edge = (var + eps) / 2
    assert flagged(var, edge, eps)
    assert flagged(var, math.nextafter(edge, math.inf), eps)
    assert flagged(var, 1e30, eps)
    assert not flagged(var, math.nextafter(edge, 0.0), eps)
    assert not flagged(var, 0.0, eps)


def test_without_variance_and_eps_a_channel_is_ill_posed() -> None:
    assert flagged(0.0, 0.0, 0.0)


def test_an_ill_posed_channel_has_no_bound_of_what_its_scale_is_in() -> None:
    batch = Batch(shape=(20, 3), sigma=1e-3, kappa=1e6)
    setting = Setting(batch=batch, eps=1e-8)
    expected, bounds = truth(setting)
    assert not expected.bounds.posed.any()
    for name in ("output", "input", "weight"):
        assert bounds[name].bound.isposinf().all()
    for name in ("bias", "running_mean", "running_var"):
        assert bounds[name].bound.isfinite().all()


def test_ill_posed_channels_leave_the_others_their_bounds() -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 1e4 + 1e-3 * x[:, 0]
    twin = ReferenceTwin(ReferenceBatchNorm(2, eps=1e-8), Arithmetic.for_dtypes(F32, F32))
    expected = twin.expect(x)
    assert expected.bounds.posed.tolist() == [False, True]
    assert expected.output.bound[:, 0].isposinf().all()
    assert (expected.output.bound[:, 1] < 1e-4).all()


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, None])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_a_sum_too_deep_for_its_precision_has_no_bound_and_never_nan(
    fill: float, momentum: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.full((8, 2), fill, dtype=F16)
    twin = ReferenceTwin(ReferenceBatchNorm(2, momentum=momentum), Arithmetic.for_dtypes(F16, F16))
    monkeypatch.setattr(batch_summary, "sum_depth", lambda *args, **kwargs: 2**24)
    expected = twin.expect(x)
    found = [expected.output, *expected.gradients(fill * x), twin.running_mean, twin.running_var]
    assert all(each.bound.isposinf().all() for each in found)

    twin.reference.eval()
    for each in (twin.expect(x).output, *twin.expect(x).gradients(fill * x)):
        assert each.bound.isposinf().all()

    fresh = ReferenceTwin(ReferenceBatchNorm(2).eval(), Arithmetic.for_dtypes(F16, F16)).expect(x)
    of_input, of_weight, of_bias = fresh.gradients(fill * x)
    assert fresh.output.bound.isfinite().all()
    assert of_input.bound.isfinite().all()
    assert of_weight.bound.isposinf().all()
    assert of_bias.bound.isposinf().all()


def hostile() -> Iterator[Tensor]:
    """Yield batches at the ends of what float32 holds, in shape (8, 2, 2)."""
    x = torch.randn(8, 2, 2, generator=torch.Generator().manual_seed(0))
    yield torch.zeros_like(x)
    yield torch.full_like(x, 1e4)
    for factor in (1e-45, 1e-38, 1e-20, 1e10, 1e18, 1e38):
        yield x * factor
        yield x + factor
    yield torch.where(x > 1, 3e38, -3e38)
    yield x[:, :, :0]
    yield x[:0]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 1.0])
def test_a_bound_is_never_nan(eps: float, training: bool) -> None:
    for x in hostile():
        for momentum in (0.0, 0.1, 1.0):
            for weight in (0.0, 1.0, 1e30):
                reference = ReferenceBatchNorm(2, eps=eps, momentum=momentum).train(training)
                assert reference.weight is not None
                reference.weight.data.fill_(weight)
                for pair in ((F32, F32), (BF16, BF16), (F64, F64)):
                    twin = ReferenceTwin(reference, Arithmetic.for_dtypes(*pair))
                    expected = twin.expect(x)
                    found = [expected.output, twin.running_mean, twin.running_var]
                    found += expected.gradients(torch.ones_like(x))
                    for _, bound in found:
                        assert not bound.isnan().any(), (x, momentum, weight, pair)
                        assert (bound >= 0).all()


@pytest.mark.parametrize(
    ("state", "bounded"),
    [(torch.float16, False), (torch.bfloat16, True), (torch.float32, True)],
)
def test_a_sum_of_squares_that_float16_cannot_hold_bounds_nothing(
    state: torch.dtype, bounded: bool
) -> None:
    values = 30 * torch.randn(2, 100, generator=torch.Generator().manual_seed(0)).double()
    true = batch_statistics(values)
    half = torch.float16 if state is torch.float16 else torch.bfloat16
    errors = statistics_bounds(values, true, 101, Arithmetic.for_dtypes(half, state))
    assert bool(errors.var.isfinite().all()) == bounded
    assert errors.mean.isfinite().all()
