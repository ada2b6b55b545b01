"""Hypothesis strategies for BatchNorm: sizes, settings, inputs and whole cases.

All shrink towards small and plain. A batch is drawn as a shape, a seed and its conditioning, so a
batch of a million values costs no more to draw than one of ten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

from pytest_bninvariants.batchnorm.arguments import (
    check_batch,
    check_device,
    check_flag,
    check_fraction,
    check_known,
    check_list,
    check_samples,
    check_whole_number,
    layouts_for_rank,
)
from pytest_bninvariants.batchnorm.cases import LAYOUTS, Batch, Case
from pytest_bninvariants.batchnorm.shapes import MOST_SAMPLES, BatchLimits, sizes_between
from pytest_bninvariants.errors import describe
from pytest_bninvariants.option_values import DTYPES

T = TypeVar("T")
_KAPPAS = (0.0, 1.0, 10.0, 30.0, 1e2, 1e3, 1e4, 1e5, 1e6)
_SEEDS = st.integers(0, 2**16)
# Hypothesis runs several variants of each case that it draws anew, and most keep the seed: so three
# seeds in four give a state other than a new layer's.
_STATE_SEEDS = _SEEDS.map(lambda seed: seed if seed % 4 else None)
# mean over standard deviation: above these, channels become ill-posed, see docs/tolerance.md
_LARGEST_KAPPA = {"float64": 1e6, "float32": 1e4, "float16": 30.0, "bfloat16": 5.0}
_LARGEST_MIXED_KAPPA = 1e2  # half input of a layer that computes in float32


def batch_sizes(min_size: int = 1, max_size: int = MOST_SAMPLES) -> st.SearchStrategy[int]:
    """Return a strategy for batch sizes: each small one, and those around powers of two.

    Args:
        min_size: the smallest, 0 or more; 0 is an empty batch.
        max_size: the largest.

    Raises:
        InvalidArgument: if a size is not a whole number, or negative, or max_size is the smaller.

    Examples:
        >>> from hypothesis import find
        >>> from pytest_bninvariants.batchnorm.strategies import batch_sizes
        >>> find(batch_sizes(), lambda size: size > 20)
        21
    """
    if check_whole_number("max_size", max_size) < check_whole_number("min_size", min_size):
        raise InvalidArgument(f"max_size={max_size} is below min_size={min_size}")
    return st.sampled_from(sizes_between(min_size, max_size))


def momenta(*, none: bool = True) -> st.SearchStrategy[float | None]:
    """Return a strategy for momenta: the default first, then corners, then any from 0 to 1.

    Args:
        none: whether None, the cumulative average, is among them.

    Raises:
        InvalidArgument: if `none` is neither True nor False.

    Examples:
        >>> from hypothesis import find
        >>> from pytest_bninvariants.batchnorm.strategies import momenta
        >>> find(momenta(), lambda momentum: True)
        0.1
    """
    check_flag("none", none)
    corners: tuple[float | None, ...] = (0.1, 0.0, 1.0, 1, 0.5, 0, 0.9, 0.01, 0.003)
    numbers = st.floats(0.0, 1.0, width=16)
    return st.one_of(st.sampled_from(corners + (None,) * none), numbers)


def epsilons(min_value: float = 1e-16) -> st.SearchStrategy[float]:
    """Return a strategy for eps: the default first, then those that models use.

    Args:
        min_value: the smallest.

    Raises:
        InvalidArgument: if `min_value` is not a number from 0 to 1.

    Examples:
        >>> from hypothesis import find
        >>> from pytest_bninvariants.batchnorm.strategies import epsilons
        >>> find(epsilons(), lambda eps: True)
        1e-05
    """
    check_fraction("min_value", min_value)
    usual = (1e-5, 1e-3, 1e-2, 0.1, 1.0, 1e-6, 1e-8, 1e-12, 1e-16)
    return st.sampled_from(tuple(eps for eps in usual if eps >= min_value))


def devices(*names: str) -> st.SearchStrategy[str]:
    """Return a strategy for devices that this machine has.

    Args:
        names: as `--bn-device` takes them; without any: `all`.

    Raises:
        InvalidArgument: if a device is unknown, or this machine has none of its kind.

    Examples:
        >>> from hypothesis import find
        >>> from pytest_bninvariants.batchnorm.strategies import devices
        >>> find(devices("cpu"), lambda device: True)
        'cpu'
    """
    from pytest_bninvariants.devices import DEVICES, resolve_devices

    for name in names:
        if not isinstance(name, str):
            raise InvalidArgument(f"a device must be one of {DEVICES}, not {describe(name)}")
    try:
        return st.sampled_from(resolve_devices(names or ("all",), "devices"))
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def dtypes(*names: str) -> st.SearchStrategy[str]:
    """Return a strategy for names of dtypes.

    Args:
        names: which; without any: float32, then float64, bfloat16 and float16.

    Raises:
        InvalidArgument: if a name is unknown.

    Examples:
        >>> from hypothesis import find
        >>> from pytest_bninvariants.batchnorm.strategies import dtypes
        >>> find(dtypes(), lambda dtype: dtype != "float32")
        'float64'
    """
    for name in names:
        check_known("dtype", name, DTYPES)
    return st.sampled_from(names or sorted(DTYPES, key=lambda name: name != "float32"))


def memory_formats(dims: int = 4, layouts: Sequence[str] = LAYOUTS) -> st.SearchStrategy[str]:
    """Return a strategy for layouts in memory that a batch of a rank can have.

    Args:
        dims: the rank, 2 to 5.
        layouts: which of them.

    Raises:
        InvalidArgument: if the rank or a layout is unknown, or the rank can have none of them.

    Examples:
        >>> from hypothesis import find
        >>> from pytest_bninvariants.batchnorm.strategies import memory_formats
        >>> find(memory_formats(dims=4), lambda layout: layout != "contiguous")
        'channels_last'
    """
    return st.sampled_from(layouts_for_rank(dims, layouts))


def bn_inputs(
    *,
    dims: int = 4,
    channels: int | None = None,
    dtype: str = "float32",
    eps: float = 1e-5,
    min_values: int = 2,
    max_values: int = 4096,
    layouts: Sequence[str] = LAYOUTS,
) -> st.SearchStrategy[Batch]:
    """Return a strategy for batches: shape, seed, layout, variance (also near eps), offset over it.

    Args:
        dims: the rank, 2 to 5.
        channels: C; None: drawn.
        dtype: name of its dtype.
        eps: of the layer that will get it.
        min_values: fewest values per channel.
        max_values: most values in all.
        layouts: how it may lie in memory.

    Raises:
        InvalidArgument: if an argument is unknown, or no batch can satisfy them together.

    Examples:
        >>> from hypothesis import given, settings
        >>> from pytest_bninvariants.batchnorm.strategies import bn_inputs
        >>> from torch import nn
        >>> @settings(max_examples=10)
        ... @given(batch=bn_inputs(dims=4, channels=3))
        ... def test_a_layer_keeps_the_shape(batch):
        ...     x = batch.tensor()
        ...     assert nn.BatchNorm2d(3)(x).shape == x.shape
        >>> test_a_layer_keeps_the_shape()
    """
    check_batch(dims, channels, dtype, min_values, max_values, layouts)
    check_fraction("eps", eps)
    limits, fit = BatchLimits(min_values, max_values), layouts_for_rank(dims, layouts)
    kappa = _LARGEST_KAPPA[dtype]
    return st.composite(_batch)(dims, channels, dtype, eps, limits, fit, kappa)


def _batch(
    draw: st.DrawFn,
    dims: int,
    channels: int | None,
    dtype: str,
    eps: float,
    limits: BatchLimits,
    layouts: tuple[str, ...],
    largest_kappa: float,
) -> Batch:
    c = _draw_one(draw, limits.channels()) if channels is None else channels
    positions = _draw_one(draw, limits.positions(dims, c))
    n = _draw_one(draw, limits.samples(c, math.prod(positions)))
    return Batch(
        shape=(n, c, *positions),
        seed=draw(_SEEDS),
        sigma=_draw_one(draw, (1.0, max(eps, 1e-16) ** 0.5, 30.0, 0.05, 300.0)),
        kappa=_draw_one(draw, tuple(k for k in _KAPPAS if k <= largest_kappa)),
        rectified=_draw_one(draw, (False, False, False, True)),
        layout=_draw_one(draw, layouts),
        dtype=dtype,
    )


def _draw_one(draw: st.DrawFn, options: tuple[T, ...]) -> T:
    """Draw one of several options, and make a choice even where there is one option only.

    Hypothesis takes a case of fewer choices for the simpler one: a shape that leaves one batch size
    would win over a plain one.
    """
    return options[draw(_index(max(len(options), 2))) % len(options)]


@cache
def _index(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, count - 1)


def bn_cases(
    *,
    dims: Sequence[int] = (2, 3, 4, 5),
    dtype: str = "float32",
    state_dtype: str | None = None,
    device: str = "cpu",
    modes: Sequence[bool] | None = (True,),
    momentum: bool = True,
    average: bool = True,
    affine: bool | None = None,
    tracking: bool | None = True,
    min_values: int = 2,
    max_values: int = 4096,
    min_samples: int = 0,
    layouts: Sequence[str] = LAYOUTS,
) -> st.SearchStrategy[Case]:
    """Return a strategy for whole cases: constructor arguments, initial state, batches, modes.

    Args:
        dims: ranks that the layer takes.
        dtype: name of the inputs' dtype.
        state_dtype: name of the layer's dtype; None: the inputs'.
        device: where the layer is.
        modes: training or not, for each batch; None: drawn.
        momentum: whether the momentum is drawn; else it is 0.1.
        average: whether it may be None, the cumulative average.
        affine: whether there are weight and bias; None: drawn.
        tracking: whether there are running statistics; None: drawn.
        min_values: fewest values per channel in each batch.
        max_values: most values in a batch.
        min_samples: fewest samples in a batch.
        layouts: how batches may lie in memory.

    Raises:
        InvalidArgument: if an argument is unknown, or no case can satisfy them together.

    Examples:
        >>> from hypothesis import given, settings
        >>> from pytest_bninvariants.batchnorm.strategies import bn_cases
        >>> from torch import nn
        >>> @settings(max_examples=10)
        ... @given(case=bn_cases(dims=[4], momentum=False, affine=True))
        ... def test_a_layer_loads_the_state(case):
        ...     layer = nn.BatchNorm2d(case.channels, eps=case.eps)
        ...     layer.load_state_dict(case.state(), strict=False)
        ...     assert layer(case.batches[0].tensor()).isfinite().all()
        >>> test_a_layer_loads_the_state()
    """
    for rank in check_list("dims", dims):
        check_batch(rank, None, dtype, min_values, max_values, layouts)
    state_dtype = dtype if state_dtype is None else state_dtype
    check_known("state_dtype", state_dtype, DTYPES)
    check_device(device)
    for training in () if modes is None else check_list("modes", modes):
        check_flag("a mode", training)
    check_flag("momentum", momentum)
    check_flag("average", average)
    check_flag("affine", affine, none=True)
    check_flag("tracking", tracking, none=True)
    half = "float16" in (dtype, state_dtype)
    either = st.booleans()
    return _cases(
        layouts={rank: layouts_for_rank(rank, layouts) for rank in dims},
        limits=BatchLimits(min_values, max_values, check_samples(min_samples, max_values)),
        modes=st.lists(either, min_size=1, max_size=5) if modes is None else st.just(modes),
        eps=epsilons(1e-5 if half else 1e-8 if dtype != "float64" else 1e-16),
        momentum=momenta(none=average) if momentum else st.just(0.1),
        affine=either if affine is None else st.just(affine),
        tracking=either if tracking is None else st.just(tracking),
        dtype=dtype,
        state_dtype=state_dtype,
        device=device,
    )


@st.composite
def _cases(
    draw: st.DrawFn,
    *,
    layouts: dict[int, tuple[str, ...]],
    limits: BatchLimits,
    modes: st.SearchStrategy[Sequence[bool]],
    eps: st.SearchStrategy[float],
    momentum: st.SearchStrategy[float | None],
    affine: st.SearchStrategy[bool],
    tracking: st.SearchStrategy[bool],
    dtype: str,
    state_dtype: str,
    device: str,
) -> Case:
    training, e = tuple(draw(modes)), draw(eps)
    mixed = _LARGEST_MIXED_KAPPA if state_dtype == "float32" else 0.0
    kappa = max(_LARGEST_KAPPA[dtype], mixed)
    rank = _draw_one(draw, tuple(layouts))
    channels = _draw_one(draw, limits.channels()[: 4 if len(training) > 1 else None])
    return Case(
        batches=tuple(
            _batch(draw, rank, channels, dtype, e, limits, layouts[rank], kappa) for _ in training
        ),
        eps=e,
        momentum=draw(momentum),
        affine=draw(affine),
        track_running_stats=draw(tracking),
        seed=draw(_STATE_SEEDS),
        count=_draw_one(draw, (0, 1, 7, 2**24, 2**31)),
        modes=training,
        dtype=dtype,
        state_dtype=state_dtype,
        device=device,
        plain_gradient=draw(st.booleans()),
    )
