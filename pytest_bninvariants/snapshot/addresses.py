"""Where tensors lie in memory: aliases share an address."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor

from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, extent, is_plain, parts
from pytest_bninvariants.torch_internals.private_api import DisableTorchFunction

_T = TypeVar("_T")
Span = tuple[int, int]


def address(tensor: Tensor) -> int:
    """Return where a tensor's values begin in memory; 0 if it has no memory."""
    with DisableTorchFunction():
        return _address(tensor)


def addresses(tensors: Iterable[Tensor]) -> set[int]:
    """Return where the values of tensors begin in memory, without those that have no memory."""
    with DisableTorchFunction():
        return {_address(tensor) for tensor in tensors} - {0}


def _address(tensor: Tensor) -> int:
    try:
        return 0 if tensor.is_meta else tensor.data_ptr()
    except RuntimeError:  # sparse and fake tensors have no address
        return 0


def share_memory(tensor: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are the same, or lie in the same memory."""
    return tensor is other or address(tensor) == address(other) != 0


def group_by_address(pairs: Iterable[tuple[object, _T]]) -> dict[int, list[_T]]:
    """Group items by the address of the tensor that each is paired with, if it has one."""
    groups: dict[int, list[_T]] = {}
    for tensor, item in pairs:
        start = address(tensor) if isinstance(tensor, Tensor) else 0
        if start:
            groups.setdefault(start, []).append(item)
    return groups


def spans(tensor: Tensor) -> list[Span]:
    """Return the first address of each part of a tensor, and the one after its last."""
    try:
        pieces = (tensor,) if is_plain(tensor) else parts(tensor)
        return [(piece.data_ptr(), piece.data_ptr() + extent(piece)) for piece in pieces]
    except READ_ERRORS:
        return []
