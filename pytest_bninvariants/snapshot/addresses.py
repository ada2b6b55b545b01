"""Where tensors lie in memory, which their aliases share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor

from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, extent, is_plain, parts
from pytest_bninvariants.torch_internals.private_api import DisableTorchFunction

_T = TypeVar("_T")
Span = tuple[int, int]


def address(tensor: Tensor) -> int:
    """Return where a tensor's values lie, which its aliases share; 0 if nowhere."""
    with DisableTorchFunction():
        return _address(tensor)


def addresses(tensors: Iterable[Tensor]) -> set[int]:
    """Return where the values of tensors lie."""
    with DisableTorchFunction():
        return {_address(tensor) for tensor in tensors} - {0}


def _address(tensor: Tensor) -> int:
    try:
        return 0 if tensor.is_meta else tensor.data_ptr()
    except RuntimeError:  # sparse and fake tensors have no address
        return 0


def group_by_address(held: Iterable[tuple[object, _T]]) -> dict[int, list[_T]]:
    """Group what goes with tensors by where their values lie; what goes with others is left out."""
    found: dict[int, list[_T]] = {}
    for tensor, each in held:
        at = address(tensor) if isinstance(tensor, Tensor) else 0
        if at:
            found.setdefault(at, []).append(each)
    return found


def spans(tensor: Tensor) -> list[Span]:
    """Return where a tensor's values lie, from and up to; nowhere for those without any."""
    try:
        found = (tensor,) if is_plain(tensor) else parts(tensor)
        return [(part.data_ptr(), part.data_ptr() + extent(part)) for part in found]
    except READ_ERRORS:
        return []
