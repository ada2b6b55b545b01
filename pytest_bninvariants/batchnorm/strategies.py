"""Hypothesis strategies for BatchNorm: sizes, settings, inputs and whole cases.

All shrink towards small and plain. A batch is drawn as a shape, a seed and its conditioning, so one
of a million values costs no more to draw than one of ten.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

from pytest_bninvariants.batchnorm.cases import LAYOUTS, Batch, Case
from pytest_bninvariants.errors import shown

_BOUNDARIES = (63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 4097)
_KAPPAS = {"float64": 1e6, "float32": 1e4, "float16": 30.0, "bfloat16": 5.0}
DTYPES = tuple(_KAPPAS)
_POSITIONS = {
    2: ((),),
    3: ((1,), (2,), (3,), (5,), (8,), (17,), (33,)),
    4: ((1, 1), (1, 2), (2, 2), (3, 2), (1, 7), (4, 4), (5, 7)),
    5: ((1, 1, 1), (1, 1, 2), (2, 2, 2), (3, 1, 2), (3, 4, 5)),
}
_CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 65)


def batch_sizes(min_size: int = 1, max_size: int = 1025) -> st.SearchStrategy[int]:
    """Return a strategy for batch sizes: each small one, and those around powers of two.

    Args:
        min_size: the smallest, 0 or more; 0 is an empty batch.
        max_size: the largest.

    Raises:
        InvalidArgument: a size is no whole number, negative, or they are in the wrong order.
    """
    for name, value in (("min_size", min_size), ("max_size", max_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidArgument(f"{name} is a whole number from 0, not {shown(value)}")
    if max_size < min_size:
        raise InvalidArgument(f"max_size={max_size} is below min_size={min_size}")
    small = range(min_size, min(max_size, max(66, min_size)) + 1)
    large = [size for size in _BOUNDARIES if size not in small and min_size <= size <= max_size]
    return st.sampled_from([*small, *large])


def momenta(*, none: bool = True) -> st.SearchStrategy[float | None]:
    """Return a strategy for momenta: the default first, then corners, then any from 0 to 1.

    Args:
        none: whether None, the cumulative average, is among them.
    """
    corners: list[float | None] = [0.1, 0.0, 1.0, 0.5, 0.9, 0.01, 0.003]
    numbers = st.floats(0.0, 1.0, width=16)
    return st.one_of(st.sampled_from(corners + [None] * none), numbers)


def epsilons(min_value: float = 1e-12) -> st.SearchStrategy[float]:
    """Return a strategy for eps: the default first, then those that models use.

    Args:
        min_value: the smallest.
    """
    if not isinstance(min_value, (int, float)) or not 0 <= min_value <= 1:
        raise InvalidArgument(f"min_value is a number from 0 to 1, not {shown(min_value)}")
    usual = (1e-5, 1e-3, 1e-2, 0.1, 1.0, 1e-6, 1e-8, 1e-12)
    return st.sampled_from([eps for eps in usual if eps >= min_value])


def devices(*names: str) -> st.SearchStrategy[str]:
    """Return a strategy for devices that are there.

    Args:
        names: as `--bn-device` takes them; none: `all`.

    Raises:
        InvalidArgument: a device is unknown or not there.
    """
    from pytest_bninvariants.devices import resolve

    try:
        return st.sampled_from(resolve(names or ("all",), "devices"))
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def dtypes(*names: str) -> st.SearchStrategy[str]:
    """Return a strategy for names of dtypes.

    Args:
        names: which; none: float64, float32, float16 and bfloat16.
    """
    for name in names:
        _known("dtype", name, DTYPES)
    return st.sampled_from(names or ("float32", "float64", "bfloat16", "float16"))


def memory_formats(dims: int = 4, layouts: Sequence[str] = LAYOUTS) -> st.SearchStrategy[str]:
    """Return a strategy for layouts in memory that a batch of a rank can have.

    Args:
        dims: the rank, 2 to 5.
        layouts: which of them.
    """
    _known("dims", dims, _POSITIONS)
    for name in layouts:
        _known("layout", name, LAYOUTS)
    fit = [name for name in layouts if name != "channels_last" or dims >= 4]
    return st.sampled_from(fit)


def _known(what: str, value: object, accepted: Collection[object]) -> None:
    if value not in accepted:
        allowed = ", ".join(map(str, accepted))
        raise InvalidArgument(f"{what} is one of {allowed}, not {shown(value)}")


@st.composite
def bn_inputs(
    draw: st.DrawFn,
    *,
    dims: int = 4,
    channels: int | None = None,
    dtype: str = "float32",
    eps: float = 1e-5,
    min_values: int = 2,
    max_values: int = 4096,
    layouts: Sequence[str] = LAYOUTS,
) -> Batch:
    """Draw a batch: shape, seed, layout, variance (also near eps) and offset over it.

    Args:
        dims: the rank, 2 to 5.
        channels: C; None: drawn.
        dtype: name of its dtype.
        eps: of the layer that will get it.
        min_values: fewest values per channel.
        max_values: most values in all.
        layouts: how it may lie in memory.
    """
    _known("dims", dims, _POSITIONS)
    _known("dtype", dtype, DTYPES)
    positions = draw(st.sampled_from(_POSITIONS[dims]))
    c = draw(st.sampled_from(_CHANNELS)) if channels is None else channels
    each = math.prod(positions)
    fewest = -(-min_values // each)
    n = draw(batch_sizes(fewest, max(fewest, min(1025, max_values // (each * c)))))
    exponents = [k for k in (0, 1, 10, 30, 1e2, 1e3, 1e4, 1e5, 1e6) if k <= _KAPPAS[dtype]]
    return Batch(
        shape=(n, c, *positions),
        seed=draw(st.integers(0, 2**16)),
        sigma=draw(st.sampled_from((1.0, max(eps, 1e-8) ** 0.5, 30.0, 0.05))),
        kappa=draw(st.sampled_from(exponents)),
        layout=draw(memory_formats(dims, layouts)),
        dtype=dtype,
    )


@st.composite
def bn_cases(
    draw: st.DrawFn,
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
    layouts: Sequence[str] = LAYOUTS,
) -> Case:
    """Draw a whole case: constructor arguments, initial state, batches and modes.

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
        layouts: how batches may lie in memory.
    """
    state_dtype = dtype if state_dtype is None else state_dtype
    half = dtype == "float16" or state_dtype == "float16"
    eps = draw(epsilons(1e-5 if half else 1e-8 if dtype != "float64" else 1e-12))
    if modes is None:
        modes = draw(st.lists(st.booleans(), min_size=1, max_size=5))
    rank = draw(st.sampled_from(tuple(dims)))
    channels = draw(st.sampled_from(_CHANNELS[: 4 if len(modes) > 1 else None]))
    inputs = bn_inputs(
        dims=rank,
        channels=channels,
        dtype=dtype,
        eps=eps,
        min_values=min_values,
        max_values=max_values,
        layouts=layouts,
    )
    return Case(
        batches=tuple(draw(inputs) for _ in modes),
        eps=eps,
        momentum=draw(momenta(none=average)) if momentum else 0.1,
        affine=draw(st.booleans()) if affine is None else affine,
        track_running_stats=draw(st.booleans()) if tracking is None else tracking,
        seed=draw(st.one_of(st.none(), st.integers(0, 2**16))),
        count=draw(st.sampled_from((0, 1, 7, 2**24, 2**31))),
        modes=tuple(modes),
        dtype=dtype,
        state_dtype=state_dtype,
        device=device,
        plain_gradient=draw(st.booleans()),
    )
