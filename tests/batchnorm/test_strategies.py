"""Strategies give what they say, refuse what they cannot give, and shrink to the plain case."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.cases import LAYOUTS, Batch, Case
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

calm = settings(
    database=None,
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=list(HealthCheck),
)
LAYERS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


def smallest(strategy: st.SearchStrategy[Any], holds: Callable[[Any], bool]) -> Any:
    return find(strategy, holds, settings=settings(calm, max_examples=1000))


def drawn(strategy: st.SearchStrategy[Any], count: int = 100) -> list[Any]:
    """Return values of a strategy."""
    values: list[Any] = []

    @settings(calm, max_examples=count)
    @given(strategy)
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    return values


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
    assert 1e-12 <= eps <= 1


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
    expected = set(LAYOUTS) - (set() if dims >= 4 else {"channels_last"})
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
    assert x.numel() <= max(4096, 3 * (fewest + batch.positions))


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


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: batch_sizes(-1), "min_size is a whole number from 0, not -1 (int)"),
        (lambda: batch_sizes(1.5), "min_size is a whole number from 0, not 1.5 (float)"),  # type: ignore[arg-type]
        (lambda: batch_sizes(True), "min_size is a whole number from 0, not True (bool)"),
        (lambda: batch_sizes(1, "9"), "max_size is a whole number from 0, not '9' (str)"),  # type: ignore[arg-type]
        (lambda: batch_sizes(5, 4), "max_size=4 is below min_size=5"),
        (lambda: epsilons(-1e-5), "min_value is a number from 0 to 1, not -1e-05 (float)"),
        (lambda: epsilons(2), "min_value is a number from 0 to 1, not 2 (int)"),
        (lambda: epsilons(math.nan), "min_value is a number from 0 to 1, not nan (float)"),
        (lambda: epsilons("1e-5"), "min_value is a number from 0 to 1, not '1e-5' (str)"),  # type: ignore[arg-type]
        (lambda: dtypes("int8"), "not 'int8' (str)"),
        (lambda: dtypes("float32", "half"), "not 'half' (str)"),
        (lambda: memory_formats(6), "dims is one of 2, 3, 4, 5, not 6 (int)"),
        (lambda: memory_formats(4, ["nchw"]), "not 'nchw' (str)"),
        (lambda: devices("tpu"), "tpu"),
        (lambda: smallest(bn_inputs(dims=1), bool), "dims is one of 2, 3, 4, 5, not 1 (int)"),
        (lambda: smallest(bn_inputs(dtype="int8"), bool), "not 'int8' (str)"),
        (lambda: smallest(bn_inputs(layouts=("nchw",)), bool), "not 'nchw' (str)"),
        (lambda: smallest(bn_inputs(min_values=-200), bool), "not -"),
        (lambda: smallest(bn_cases(dims=(7,)), bool), "dims is one of 2, 3, 4, 5, not 7 (int)"),
        (lambda: smallest(bn_cases(dtype="int8"), bool), "not 'int8' (str)"),
    ],
)
def test_a_bad_argument_is_named(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert said in str(caught.value)


def anything(value: object) -> bool:
    return True


def test_settings_shrink_to_torchs_defaults() -> None:
    assert smallest(momenta(), anything) == 0.1
    assert smallest(epsilons(), anything) == 1e-5
    assert smallest(batch_sizes(), lambda n: n > 20) == 21
    assert smallest(batch_sizes(), lambda n: n > 200) == 255
    assert smallest(dtypes(), anything) == "float32"
    assert smallest(devices(), anything) == "cpu"
    assert smallest(memory_formats(), anything) == "contiguous"


SHRINKS = pytest.mark.xfail(reason="one batch size draws no choice, so large shapes look simpler")


@pytest.mark.parametrize("dims", [2, *(pytest.param(dims, marks=SHRINKS) for dims in (3, 4, 5))])
def test_inputs_shrink_to_two_plain_values(dims: int) -> None:
    found = smallest(bn_inputs(dims=dims), anything)
    assert found == Batch(shape=(2, 1, *[1] * (dims - 2)))


def test_cases_shrink_to_a_new_layer_and_one_plain_batch() -> None:
    found = smallest(bn_cases(), anything)
    assert found == Case(batches=(Batch(shape=(2, 1)),), affine=False)


def test_a_case_shrinks_to_what_its_failure_needs() -> None:
    found = smallest(bn_cases(dims=(4,)), lambda case: case.channels >= 3 and case.affine)
    assert found == Case(batches=(Batch(shape=(2, 3, 1, 1)),))
    found = smallest(bn_cases(modes=None), lambda case: not all(case.modes))
    assert found.modes == (False,)
    assert found.batches == (Batch(shape=(2, 1)),)
    found = smallest(bn_inputs(), lambda batch: batch.kappa >= 100 and batch.shape[0] >= 20)
    assert found == Batch(shape=(20, 1, 1, 1), kappa=100.0)
    found = smallest(bn_cases(dims=(4,)), lambda case: case.batches[0].layout == "strided")
    assert found.batches == (Batch(shape=(2, 1, 1, 1), layout="strided"),)


def run(lines: list[str]) -> Tensor:
    names: dict[str, Any] = {"torch": torch}
    exec("\n".join(lines), names)
    made: Tensor = names["x"]
    return made


SHORT = {2: (4, 3), 3: (4, 3, 5), 4: (3, 2, 2, 3), 5: (2, 3, 2, 1, 3)}
LONG = {2: (90, 3), 3: (8, 5, 17), 4: (8, 3, 5, 7), 5: (5, 4, 3, 4, 5)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dims", [2, 3, 4, 5])
@pytest.mark.parametrize("shapes", [SHORT, LONG], ids=["short", "long"])
def test_the_source_of_a_batch_makes_exactly_its_tensor(
    shapes: dict[int, tuple[int, ...]], dims: int, layout: str, dtype: str
) -> None:
    if layout == "channels_last" and dims < 4:
        pytest.skip("channels_last is a layout of four or five dimensions")
    for seed in (0, 7):
        kappa = 1e3 if dtype != "float16" else 30.0
        batch = Batch(
            shape=shapes[dims], seed=seed, sigma=1e-5**0.5, kappa=kappa, layout=layout, dtype=dtype
        )
        x, made = batch.tensor(), run(batch.source())
        assert ("randn" in "\n".join(batch.source())) == (shapes is LONG)
        assert made.dtype == x.dtype
        assert torch.equal(made, x)
        assert made.stride() == x.stride()
        assert made.storage_offset() == x.storage_offset()


@given(batch=st.integers(2, 5).flatmap(lambda dims: bn_inputs(dims=dims)))
@calm
def test_the_source_of_a_drawn_batch_makes_exactly_its_tensor(batch: Batch) -> None:
    x, made = batch.tensor(), run(batch.source())
    assert torch.equal(made, x)
    assert (made.dtype, made.shape, made.stride()) == (x.dtype, x.shape, x.stride())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_no_value_but_where_samples_are_one(layout: str) -> None:
    plain, laid = Batch(shape=(4, 3, 2, 5)), Batch(shape=(4, 3, 2, 5), layout=layout)
    expected = plain.tensor()
    if layout == "expanded":
        expected = expected[:1].expand(4, 3, 2, 5)
    assert torch.equal(laid.tensor(), expected)
    dense = layout in ("contiguous", "offset")
    assert laid.tensor().is_contiguous() == dense


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
