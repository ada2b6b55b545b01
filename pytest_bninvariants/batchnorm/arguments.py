"""Check arguments of the strategies; an error names the argument and the accepted values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from hypothesis.errors import InvalidArgument

from pytest_bninvariants.batchnorm.cases import LAYOUTS, LEAST_DIMS
from pytest_bninvariants.checks import is_int, is_number
from pytest_bninvariants.errors import describe
from pytest_bninvariants.option_values import DTYPES

RANKS = (2, 3, 4, 5)
T = TypeVar("T")


def check_whole_number(name: str, value: object, least: int = 0) -> int:
    """Return a whole number.

    Raises:
        InvalidArgument: if the value is not a whole number, or below the least.
    """
    if not is_int(value) or value < least:
        raise InvalidArgument(f"{name} must be a whole number >= {least}, not {describe(value)}")
    return value


def check_samples(least: object, max_values: int) -> int:
    """Return a least number of samples, of which a batch of one channel has so many values.

    Raises:
        InvalidArgument: if it is not a whole number up to max_values.
    """
    samples = check_whole_number("min_samples", least)
    if samples > max_values:
        raise InvalidArgument(f"min_samples={samples} is above max_values={max_values}")
    return samples


def check_fraction(name: str, value: object) -> None:
    """Refuse a value that is not a number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise InvalidArgument(f"{name} must be a number from 0 to 1, not {describe(value)}")


def check_flag(name: str, value: object, *, none: bool = False) -> None:
    """Refuse a value other than True and False, or None where that is accepted."""
    if not isinstance(value, bool) and not (none and value is None):
        accepted = "True, False or None" if none else "True or False"
        raise InvalidArgument(f"{name} must be {accepted}, not {describe(value)}")


def check_known(name: str, value: object, accepted: Sequence[object]) -> None:
    """Refuse a value that is not one of the accepted ones."""
    if not isinstance(value, type(accepted[0])) or value not in accepted:
        allowed = ", ".join(map(str, accepted))
        raise InvalidArgument(f"{name} must be one of {allowed}, not {describe(value)}")


def check_list(name: str, value: Sequence[T]) -> tuple[T, ...]:
    """Return the members of a list.

    Raises:
        InvalidArgument: if the value is not a list, or is empty.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise InvalidArgument(f"{name} must be a non-empty list, not {describe(value)}")
    return tuple(value)


def check_device(value: object) -> None:
    """Refuse a value that torch does not accept as the name of a device."""
    try:
        if not isinstance(value, str):
            raise TypeError(value)
        torch.device(value)
    except (TypeError, RuntimeError):
        accepted = "the name of a torch device, such as cpu or cuda:1"
        raise InvalidArgument(f"device must be {accepted}, not {describe(value)}") from None


def layouts_for_rank(dims: int, layouts: Sequence[str]) -> tuple[str, ...]:
    """Return the layouts that a batch of this rank can have, among those given.

    Raises:
        InvalidArgument: if the rank or a layout is unknown, or no layout is left.
    """
    check_known("dims", dims, RANKS)
    for layout in check_list("layouts", layouts):
        check_known("layout", layout, LAYOUTS)
    fit = tuple(layout for layout in layouts if LEAST_DIMS.get(layout, 2) <= dims)
    if not fit:
        only = " and ".join(dict.fromkeys(layouts))
        raise InvalidArgument(f"layouts has only {only}, which dims={dims} cannot have")
    return fit


def check_batch(
    dims: int,
    channels: int | None,
    dtype: str,
    min_values: int,
    max_values: int,
    layouts: Sequence[str],
) -> None:
    """Refuse arguments of `bn_inputs` that no batch can satisfy."""
    layouts_for_rank(dims, layouts)
    check_known("dtype", dtype, DTYPES)
    width = 1 if channels is None else check_whole_number("channels", channels, 1)
    needed = width * check_whole_number("min_values", min_values)
    if check_whole_number("max_values", max_values) < needed:
        each = "" if channels is None else f" in each of {channels} channels"
        raise InvalidArgument(
            f"max_values={max_values} is below {needed}, which min_values={min_values}{each} needs"
        )
