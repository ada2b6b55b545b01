"""What the strategies take: a bad argument is refused by name, with what would be accepted."""

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
        InvalidArgument: it is none, or below the least.
    """
    if not is_int(value) or value < least:
        raise InvalidArgument(f"{name} is a whole number from {least}, not {describe(value)}")
    return value


def check_fraction(name: str, value: object) -> None:
    """Refuse what is no number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise InvalidArgument(f"{name} is a number from 0 to 1, not {describe(value)}")


def check_flag(name: str, value: object, *, none: bool = False) -> None:
    """Refuse what is neither True nor False, nor, where that may be, None."""
    if not isinstance(value, bool) and not (none and value is None):
        accepted = "True, False or None" if none else "True or False"
        raise InvalidArgument(f"{name} is {accepted}, not {describe(value)}")


def check_known(name: str, value: object, accepted: Sequence[object]) -> None:
    """Refuse what is not one of the accepted."""
    if not isinstance(value, type(accepted[0])) or value not in accepted:
        allowed = ", ".join(map(str, accepted))
        raise InvalidArgument(f"{name} is one of {allowed}, not {describe(value)}")


def check_list(name: str, value: Sequence[T]) -> tuple[T, ...]:
    """Return a list's members.

    Raises:
        InvalidArgument: it is no list, or empty.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise InvalidArgument(f"{name} is a list of one or more, not {describe(value)}")
    return tuple(value)


def check_device(value: object) -> None:
    """Refuse what torch does not take for the name of a device."""
    try:
        if not isinstance(value, str):
            raise TypeError(value)
        torch.device(value)
    except (TypeError, RuntimeError):
        said = "the name of a torch device, such as cpu or cuda:1"
        raise InvalidArgument(f"device is {said}, not {describe(value)}") from None


def layouts_for_rank(dims: int, layouts: Sequence[str]) -> tuple[str, ...]:
    """Return those of some layouts that a batch of a rank can have.

    Raises:
        InvalidArgument: the rank or a layout is unknown, or none is left.
    """
    check_known("dims", dims, RANKS)
    for layout in check_list("layouts", layouts):
        check_known("layout", layout, LAYOUTS)
    fit = tuple(layout for layout in layouts if LEAST_DIMS.get(layout, 2) <= dims)
    if not fit:
        only = " and ".join(dict.fromkeys(layouts))
        raise InvalidArgument(f"layouts has {only} only, which dims={dims} cannot have")
    return fit


def check_batch(
    dims: int,
    channels: int | None,
    dtype: str,
    min_values: int,
    max_values: int,
    layouts: Sequence[str],
) -> None:
    """Refuse what no batch can be; arguments as `bn_inputs`."""
    layouts_for_rank(dims, layouts)
    check_known("dtype", dtype, DTYPES)
    width = 1 if channels is None else check_whole_number("channels", channels, 1)
    needed = width * check_whole_number("min_values", min_values)
    if check_whole_number("max_values", max_values) < needed:
        each = "" if channels is None else f" in each of {channels} channels"
        raise InvalidArgument(
            f"max_values={max_values} is below {needed}, which min_values={min_values}{each} needs"
        )
