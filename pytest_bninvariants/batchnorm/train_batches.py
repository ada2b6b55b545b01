"""A hypothesis strategy for batches of train steps, which shrinks to the smallest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from torch import Tensor

from pytest_bninvariants import run_config
from pytest_bninvariants.batchnorm import strategies
from pytest_bninvariants.batchnorm.arguments import check_list, check_whole_number
from pytest_bninvariants.batchnorm.shapes import sizes_between
from pytest_bninvariants.errors import describe

MOST_SAMPLES = 32
_SEEDS = st.integers(0, 2**16)


class _InputsAndTargets(NamedTuple):
    inputs: Tensor
    targets: Tensor


class TrainBatch(_InputsAndTargets):
    """A batch, to be unpacked as `inputs, targets = batch`; its repr is the code that makes it.

    Attributes:
        inputs: shape (N, *), normally distributed.
        targets: shape (N, *): classes, int64, or normally distributed in the inputs' dtype.

    Examples:
        >>> from pytest_bninvariants import TrainBatch
        >>> batch = TrainBatch.of((4, 3, 8, 8), classes=10)
        >>> inputs, targets = batch
        >>> inputs.shape, targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4]))
        >>> batch
        TrainBatch.of((4, 3, 8, 8), classes=10, seed=0)
    """

    _code: str | None = None

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        *,
        classes: int | None = None,
        target_shape: Sequence[int] = (),
        seed: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> TrainBatch:
        """Return a batch made from a seed.

        Args:
            shape: shape of the inputs, (N, *).
            classes: the number of classes, for targets of int64; None: targets are floats.
            target_shape: shape of one sample's target.
            seed: the seed of all values; it gives the same ones on every device and, up to
                rounding, in every dtype.
            dtype: name of the inputs' dtype, and of the targets' if they are floats.
            device: the batch's device.
        """
        generator = torch.Generator().manual_seed(seed)
        torch_dtype, targets_shape = getattr(torch, dtype), (shape[0], *target_shape)
        drawn: dict[str, Any] = {"generator": generator, "device": "cpu"}
        inputs = torch.randn(tuple(shape), dtype=torch.float64, **drawn)
        if classes is None:
            targets = torch.randn(targets_shape, dtype=torch.float64, **drawn).to(torch_dtype)
        else:
            targets = torch.randint(classes, targets_shape, **drawn)
        batch = cls(inputs.to(torch_dtype).to(device), targets.to(device))
        options: dict[str, object] = {} if classes is None else {"classes": classes}
        options |= {"target_shape": tuple(target_shape)} if target_shape else {}
        options |= {"seed": seed} | ({"dtype": dtype} if dtype != "float32" else {})
        options |= {"device": device} if device != "cpu" else {}
        arguments = "".join(f", {name}={value!r}" for name, value in options.items())
        batch._code = f"TrainBatch.of({tuple(shape)}{arguments})"
        return batch

    def __repr__(self) -> str:
        return self._code or super().__repr__()


def train_batches(
    shape: Sequence[int],
    *,
    classes: int | None = None,
    target_shape: Sequence[int] | None = None,
    batch_sizes: Sequence[int] | None = None,
    dtypes: Sequence[str] = ("float32",),
    devices: Sequence[str] | None = None,
) -> st.SearchStrategy[TrainBatch]:
    """Return a strategy for batches of inputs and targets.

    It shrinks to the smallest batch size, the first dtype and device, and seed 0.

    Args:
        shape: shape of one sample's input, such as (3, 32, 32).
        classes: the number of classes, for targets of int64; None: targets are floats.
        target_shape: shape of one sample's target; with `classes` it may be left out, for one class
            per sample.
        batch_sizes: the batch sizes to draw from; None: each from 1 to 32.
        dtypes: names of the dtypes to draw from, for the inputs.
        devices: the devices to draw from, as `--bn-device` takes them; None: those of
            `--bn-device` in this run.

    Raises:
        InvalidArgument: if an argument is not as above, or this machine lacks a device.

    Examples:
        >>> from hypothesis import given
        >>> from pytest_bninvariants import train_batches
        >>> @given(batch=train_batches((3, 8, 8), classes=10))
        ... def test_the_step(batch):
        ...     inputs, targets = batch
        ...     assert len(inputs) == len(targets)
        >>> test_the_step()
    """
    sample = _shape("shape", shape)
    if classes is not None:
        check_whole_number("classes", classes, 1)
    elif target_shape is None:
        raise InvalidArgument(
            "give classes=, such as 10, for targets that are classes, or target_shape=, such as "
            "(1,), for floats"
        )
    target = () if target_shape is None else _shape("target_shape", target_shape)
    sizes = (
        sizes_between(1, MOST_SAMPLES)
        if batch_sizes is None
        else check_list("batch_sizes", batch_sizes)
    )
    ordered = sorted({check_whole_number("a batch size", size, 1) for size in sizes})
    return _batches(
        sample,
        classes,
        target,
        st.sampled_from(ordered),
        strategies.dtypes(*check_list("dtypes", dtypes)),
        None if devices is None else strategies.devices(*check_list("devices", devices)),
    )


@st.composite
def _batches(
    draw: st.DrawFn,
    sample: tuple[int, ...],
    classes: int | None,
    target: tuple[int, ...],
    sizes: st.SearchStrategy[int],
    dtypes: st.SearchStrategy[str],
    devices: st.SearchStrategy[str] | None,
) -> TrainBatch:
    if devices is None:  # read at each draw: one import of a test module serves several runs
        devices = st.sampled_from(run_config.current.devices)
    return TrainBatch.of(
        (draw(sizes), *sample),
        classes=classes,
        target_shape=target,
        dtype=draw(dtypes),
        device=draw(devices),
        seed=draw(_SEEDS),
    )


def _shape(name: str, value: Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidArgument(
            f"{name} must be the shape of one sample, such as (3, 32, 32), not {describe(value)}"
        )
    return tuple(check_whole_number(f"each of {name}", size, 1) for size in value)
