"""Strategies give what they say, refuse what they cannot give, and shrink to the plain case."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, find, given, settings, strategies as st
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
    of_images = {"channels_last", "cropped"}
    lacking = {2: {"swapped", *of_images}, 3: of_images}.get(dims, set())
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
        (lambda: memory_formats(4, "offset"), "layouts is a list of one or more, not 'offset'"),
        (lambda: memory_formats(4, []), "layouts is a list of one or more, not [] (list)"),
        (lambda: memory_formats(2, ["channels_last"]), "channels_last only, which dims=2 cannot"),
        (lambda: epsilons(True), "min_value is a number from 0 to 1, not True (bool)"),
        (lambda: momenta(none=None), "none is True or False, not None (NoneType)"),  # type: ignore[arg-type]
        (lambda: dtypes(torch.float32), "not torch.float32 (dtype)"),  # type: ignore[arg-type]
        (lambda: devices("tpu"), "tpu"),
        (lambda: devices(0), "a device is one of cpu, cuda, cuda:N, "),  # type: ignore[arg-type]
    ],
)
def test_a_bad_argument_is_named(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert said in str(caught.value)


DEVICE = "device is the name of a torch device, such as cpu or cuda:1, not "
BAD_OF_BOTH = [
    ({"dtype": "int8"}, "dtype is one of float64, float32, bfloat16, float16, not 'int8' (str)"),
    ({"dtype": torch.float32}, "not torch.float32 (dtype)"),
    ({"min_values": -200}, "min_values is a whole number from 0, not -200 (int)"),
    ({"min_values": 2.0}, "min_values is a whole number from 0, not 2.0 (float)"),
    ({"max_values": "9"}, "max_values is a whole number from 0, not '9' (str)"),
    ({"max_values": True}, "max_values is a whole number from 0, not True (bool)"),
    ({"max_values": 1}, "max_values=1 is below 2, which min_values=2 needs"),
    ({"min_values": 4097}, "max_values=4096 is below 4097, which min_values=4097 needs"),
    ({"layouts": ("nchw",)}, "layout is one of contiguous, channels_last, transposed, swapped, "),
    ({"layouts": ("nchw",)}, "not 'nchw' (str)"),
    ({"layouts": "contiguous"}, "layouts is a list of one or more, not 'contiguous' (str)"),
    ({"layouts": ()}, "layouts is a list of one or more, not () (tuple)"),
    ({"layouts": None}, "layouts is a list of one or more, not None (NoneType)"),
]
BAD_INPUTS = [
    *BAD_OF_BOTH,
    ({"dims": 1}, "dims is one of 2, 3, 4, 5, not 1 (int)"),
    ({"dims": 4.0}, "dims is one of 2, 3, 4, 5, not 4.0 (float)"),
    ({"dims": (4,)}, "dims is one of 2, 3, 4, 5, not (4,) (tuple)"),
    ({"channels": 0}, "channels is a whole number from 1, not 0 (int)"),
    ({"channels": 3.0}, "channels is a whole number from 1, not 3.0 (float)"),
    (
        {"channels": 2, "max_values": 3},
        "max_values=3 is below 4, which min_values=2 in each of 2 channels needs",
    ),
    ({"eps": -1e-5}, "eps is a number from 0 to 1, not -1e-05 (float)"),
    ({"eps": math.inf}, "eps is a number from 0 to 1, not inf (float)"),
    ({"eps": True}, "eps is a number from 0 to 1, not True (bool)"),
    ({"eps": "1e-5"}, "eps is a number from 0 to 1, not '1e-5' (str)"),
    (
        {"dims": 3, "layouts": ["channels_last"]},
        "layouts has channels_last only, which dims=3 cannot have",
    ),
]
BAD_CASES = [
    *BAD_OF_BOTH,
    ({"dims": (7,)}, "dims is one of 2, 3, 4, 5, not 7 (int)"),
    ({"dims": ()}, "dims is a list of one or more, not () (tuple)"),
    ({"dims": 4}, "dims is a list of one or more, not 4 (int)"),
    ({"state_dtype": "half"}, "state_dtype is one of float64, float32, bfloat16, float16, not "),
    ({"device": "abacus"}, f"{DEVICE}'abacus' (str)"),
    ({"device": 0}, f"{DEVICE}0 (int)"),
    ({"device": ""}, f"{DEVICE}'' (str)"),
    ({"modes": ()}, "modes is a list of one or more, not () (tuple)"),
    ({"modes": True}, "modes is a list of one or more, not True (bool)"),
    ({"modes": (True, 0)}, "a mode is True or False, not 0 (int)"),
    ({"modes": ("train",)}, "a mode is True or False, not 'train' (str)"),
    ({"momentum": 0.1}, "momentum is True or False, not 0.1 (float)"),
    ({"momentum": None}, "momentum is True or False, not None (NoneType)"),
    ({"average": 1}, "average is True or False, not 1 (int)"),
    ({"affine": "yes"}, "affine is True, False or None, not 'yes' (str)"),
    ({"tracking": 0}, "tracking is True, False or None, not 0 (int)"),
    (
        {"dims": (4, 2), "layouts": ("channels_last",)},
        "layouts has channels_last only, which dims=2 cannot have",
    ),
]


@pytest.mark.parametrize(
    ("strategy", "given_", "said"),
    [
        *((bn_inputs, *each) for each in BAD_INPUTS),
        *((bn_cases, *each) for each in BAD_CASES),
    ],
)
def test_a_bad_argument_of_a_batch_or_a_case_is_named_before_anything_is_drawn(
    strategy: Callable[..., object], given_: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        strategy(**given_)
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


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dims", [2, 3, 4, 5])
@pytest.mark.parametrize("channels", [None, 65])
def test_inputs_shrink_to_two_plain_values(dims: int, channels: int | None, seed: int) -> None:
    strategy = bn_inputs(dims=dims, channels=channels)
    settings_ = settings(calm, max_examples=100, derandomize=False)
    found = find(strategy, anything, settings=settings_, random=Random(seed))
    assert found == Batch(shape=(2, channels or 1, *[1] * (dims - 2)))


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
    if layout in ("channels_last", "cropped") and dims < 4:
        pytest.skip(f"{layout} is a layout of four or five dimensions")
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
