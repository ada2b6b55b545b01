"""Strategies give what they say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.cases import LAYOUTS, LEAST_DIMS, Batch, Case
from pytest_bninvariants.batchnorm.strategies import (
    DTYPES,
    batch_sizes,
    bn_cases,
    bn_inputs,
    devices,
    dtypes,
    epsilons,
    memory_formats,
    momenta,
)
from tests.batchnorm.strategies.drawing import calm, drawn, smallest

LAYERS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


@given(low=st.integers(0, 1100), more=st.integers(0, 5000))
@calm
def test_batch_sizes_are_within_their_range(low: int, more: int) -> None:
    sizes = drawn(batch_sizes(low, low + more), 5)
    assert all(low <= size <= low + more for size in sizes)


@pytest.mark.parametrize("size", [1, 2, 20, 63, 64, 65, 127, 129, 1023, 1025])
def test_each_small_batch_size_and_those_around_powers_of_two_are_given(size: int) -> None:
    assert smallest(batch_sizes(), lambda drawn_: drawn_ == size) == size


def test_an_empty_batch_is_given_on_demand_only() -> None:
    assert smallest(batch_sizes(0), lambda size: True) == 0
    assert 0 not in drawn(batch_sizes())


@given(momentum=momenta(), eps=epsilons())
@calm
def test_momenta_and_epsilons_are_legal_for_torch(momentum: float | None, eps: float) -> None:
    layer = nn.BatchNorm1d(2, eps=eps, momentum=momentum)
    assert layer(torch.tensor([[1.0, 2.0], [3.0, 5.0]])).isfinite().all()
    assert momentum is None or 0 <= momentum <= 1
    assert 1e-16 <= eps <= 1


def test_the_cumulative_average_is_a_momentum_unless_refused() -> None:
    assert None in drawn(momenta())
    assert None not in drawn(momenta(none=False))


def test_epsilons_keep_to_their_minimum() -> None:
    assert min(drawn(epsilons(1e-3))) == 1e-3
    assert set(drawn(epsilons(1))) == {1.0}


def test_devices_are_there() -> None:
    assert "cpu" in drawn(devices())
    assert set(drawn(devices("cpu"))) == {"cpu"}
    for name in drawn(devices()):
        assert torch.ones(1, device=name).sum() == 1


def test_dtypes_are_names_of_torchs() -> None:
    assert set(drawn(dtypes())) == set(DTYPES)
    assert set(drawn(dtypes("float64", "bfloat16"))) == {"float64", "bfloat16"}
    for name in DTYPES:
        assert getattr(torch, name).is_floating_point


@pytest.mark.parametrize("dims", [2, 3, 4, 5])
def test_memory_formats_are_those_of_the_rank(dims: int) -> None:
    lacking = {layout for layout, least in LEAST_DIMS.items() if dims < least}
    expected = set(LAYOUTS) - lacking
    assert set(drawn(memory_formats(dims))) == expected
    assert set(drawn(memory_formats(dims, ["offset"]))) == {"offset"}


@given(data=st.data(), dims=st.integers(2, 5), dtype=dtypes(), fewest=st.integers(2, 40))
@calm
def test_inputs_are_what_was_asked_for(
    data: st.DataObject, dims: int, dtype: str, fewest: int
) -> None:
    batch = data.draw(bn_inputs(dims=dims, dtype=dtype, min_values=fewest, channels=3))
    x = batch.tensor()
    assert isinstance(batch, Batch)
    assert x.shape == batch.shape
    assert x.dim() == dims
    assert x.shape[1] == 3
    assert str(x.dtype) == f"torch.{dtype}"
    assert x.isfinite().all()
    assert batch.positions == math.prod(x.shape[2:])
    assert fewest <= x.numel() // 3
    assert x.numel() <= 4096


@given(data=st.data(), dims=st.integers(2, 5), fewest=st.integers(0, 40), more=st.integers(0, 99))
@calm
def test_a_batch_has_no_more_values_than_it_may(
    data: st.DataObject, dims: int, fewest: int, more: int
) -> None:
    most = fewest * 3 + more
    for channels in (3, None):
        strategy = bn_inputs(dims=dims, channels=channels, min_values=fewest, max_values=most)
        shape = data.draw(strategy).shape
        assert fewest <= math.prod(shape) // shape[1]
        assert math.prod(shape) <= most
    case = data.draw(bn_cases(min_values=fewest, max_values=most, modes=None))
    assert all(math.prod(batch.shape) <= most for batch in case.batches)


def test_where_one_batch_is_within_the_limits_that_one_is_given() -> None:
    strategy = bn_inputs(dims=3, channels=65, min_values=3, max_values=195)
    assert {batch.shape for batch in drawn(strategy)} == {(3, 65, 1), (1, 65, 3)}
    assert {batch.shape for batch in drawn(bn_inputs(max_values=2))} == {(2, 1, 1, 1), (1, 1, 1, 2)}


@settings(calm, max_examples=20)
@given(
    case=st.sampled_from(DTYPES).flatmap(
        lambda dtype: bn_cases(dtype=dtype, modes=None, affine=None, tracking=None)
    )
)
def test_cases_are_legal_for_torch(case: Case) -> None:
    layer = LAYERS[len(case.batches[0].shape)](
        case.channels,
        eps=case.eps,
        momentum=case.momentum,
        affine=case.affine,
        track_running_stats=case.track_running_stats,
    ).to(getattr(torch, case.state_dtype))
    own = layer.state_dict()
    for name, value in case.state().items():
        assert (own[name].shape, own[name].dtype) == (value.shape, value.dtype)
        assert value.isfinite().all()
        assert name != "running_var" or (value >= 0).all()
    layer.load_state_dict(case.state(), strict=False)
    assert len(case.modes) == len(case.batches)
    for index, (training, batch) in enumerate(zip(case.modes, case.batches, strict=True)):
        x, g = batch.tensor().requires_grad_(), case.gradient(index)
        y = layer.train(training)(x)
        y.backward(g)
        assert (g.shape, g.dtype) == (x.shape, x.dtype)
        assert y.dtype == x.dtype


def test_cases_keep_to_what_is_fixed() -> None:
    strategy = bn_cases(
        dims=(3,),
        dtype="bfloat16",
        state_dtype="float32",
        modes=(True, False),
        momentum=False,
        affine=True,
        tracking=False,
        layouts=("offset",),
        min_values=6,
    )
    for case in drawn(strategy, 30):
        assert case.modes == (True, False)
        assert (case.momentum, case.affine, case.track_running_stats) == (0.1, True, False)
        assert (case.dtype, case.state_dtype) == ("bfloat16", "float32")
        for batch in case.batches:
            assert len(batch.shape) == 3
            assert batch.layout == "offset"
            assert batch.shape[1] == case.channels
            assert batch.shape[0] * batch.shape[2] >= 6


def test_a_case_of_a_million_values_is_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_values(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("drawing a batch made its values")

    monkeypatch.setattr(torch, "randn", no_values)
    strategy = bn_cases(dims=(4,), max_values=2**21, min_values=2**14)
    case = smallest(strategy, lambda case: math.prod(case.batches[0].shape) >= 10**6)
    assert math.prod(case.batches[0].shape) >= 10**6
    assert isinstance(case.batches[0].shape, tuple)
    assert len(repr(case)) < 600
    monkeypatch.undo()
    assert case.batches[0].tensor().numel() >= 10**6
