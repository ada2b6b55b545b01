"""What a tensor's content is: the bytes of the plain dense tensors that make it up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import ge
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}
_VALUES = frozenset({float, complex})
_T = TypeVar("_T")
Content = tuple[Tensor, ...]
"""Copies of the bytes of a tensor's parts."""


class UnreadableTensor(Exception):
    """Say why a tensor's values cannot be read."""


READ_ERRORS = (UnreadableTensor, RuntimeError, NotImplementedError, TypeError)
"""What a tensor may raise that cannot be read, tensors of other libraries' classes too."""


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the plain dense tensors whose bytes make up a tensor's content.

    Raises:
        UnreadableTensor: the tensor has no values that could be read, as on the meta device.
    """
    if is_lazy(tensor):
        return ()
    if is_traceable_wrapper_subclass(tensor):
        return tuple(_of_wrapper(tensor))
    tensor = tensor.detach()
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        kind = "is fake" if type(tensor).__name__ == "FakeTensor" else "is on the meta device"
        raise UnreadableTensor(f"it {kind} and has no values")
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in _COMPRESSED:
        rows, columns = _COMPRESSED[tensor.layout]
        return getattr(tensor, rows)(), getattr(tensor, columns)(), tensor.values()
    if tensor.is_nested:
        return tuple(part for piece in tensor.unbind() for part in parts(piece))
    if tensor.is_mkldnn:
        return (tensor.to_dense(),)
    if tensor.is_quantized:
        return tensor.int_repr(), *_quantizer(tensor)
    return (tensor.resolve_conj().resolve_neg(),)


def _of_wrapper(tensor: Any) -> Iterator[Tensor]:
    """Yield what a wrapper subclass computes with: its tensors, and the numbers beside them.

    Other values beside them, such as flags or a device mesh, are none of its content: among them
    is whether it asks for a gradient. Torch's own subclasses have sizes there as well.
    """
    names, context = tensor.__tensor_flatten__()
    leaves = [getattr(tensor, name) for name in names] + tree_leaves(context)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            yield from parts(leaf)
    kinds = _VALUES if type(tensor).__module__.startswith("torch.") else {*_VALUES, int}
    numbers = [leaf for leaf in leaves if type(leaf) in kinds]
    if numbers:
        yield torch.frombuffer(bytearray(repr(numbers), "utf-8"), dtype=torch.uint8)


def _quantizer(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return (torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64),)
    axis = torch.tensor([tensor.q_per_channel_axis()])
    return tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), axis


def as_bytes(part: Tensor) -> Tensor:
    """View a plain dense tensor as a flat uint8 tensor; copy only where its layout forbids it.

    Raises:
        UnreadableTensor: its memory is not there.
    """
    if not are_backed([part]):
        raise UnreadableTensor("its memory was freed")
    dense = part if part.is_contiguous() else part.contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def are_backed(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all memory of plain tensors is there; who shards a model frees it at times.

    Torch itself does not ask before it reads, and crashes.
    """
    there = map(torch.UntypedStorage.nbytes, map(Tensor.untyped_storage, tensors))
    if any(map(Tensor.storage_offset, tensors)) or not all(map(Tensor.is_contiguous, tensors)):
        ends = [extent(each) + int(each.storage_offset()) * each.itemsize for each in tensors]
    else:
        ends = [each.nbytes for each in tensors]
    return all(map(ge, there, ends))


def extent(part: Tensor) -> int:
    """Return how many bytes lie between a plain dense tensor's first and its last."""
    if part.is_contiguous() or part.numel() == 0:
        return part.nbytes
    last = sum((n - 1) * step for n, step in zip(part.shape, part.stride(), strict=True))
    return (last + 1) * part.itemsize


def in_words(*flat: Tensor) -> list[Tensor]:
    """View flat uint8 tensors of one length in the widest integers that fit all of them.

    So NaN equals the same NaN and -0.0 differs from 0.0, and comparing takes a half to a third of
    the time that it takes for floats.
    """
    ends = [end for each in flat for end in (each.numel(), each.storage_offset())]
    word = next(word for word in _WORDS if not any(end % word.itemsize for end in ends))
    return [each.view(word) for each in flat]


def join_key(tensor: Tensor) -> tuple[torch.dtype, torch.device, int]:
    """Return what tensors have in common whose values can be joined."""
    return tensor.dtype, tensor.device, min(tensor.dim(), 2)


def join_values(tensors: list[Tensor]) -> Tensor:
    """Return the values of tensors of one sort, one after another."""
    if tensors[0].dim() < 2:
        return (torch.cat if tensors[0].dim() else torch.stack)(tensors)
    flat: Tensor = torch._utils._flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    return flat


def same_bytes(kept: Tensor, now: Tensor) -> bool:
    """Compare two flat uint8 tensors."""
    return kept.numel() == now.numel() and torch.equal(*in_words(kept, now))


def address(tensor: Tensor) -> int:
    """Return where a tensor's values lie, which its aliases share; 0 if nowhere."""
    with torch._C.DisableTorchFunction():
        return _address(tensor)


def addresses(tensors: Iterable[Tensor]) -> set[int]:
    """Return where the values of tensors lie."""
    with torch._C.DisableTorchFunction():
        return {_address(tensor) for tensor in tensors} - {0}


def _address(tensor: Tensor) -> int:
    try:
        return 0 if is_lazy(tensor) or tensor.is_meta else tensor.data_ptr()
    except RuntimeError:  # sparse and fake tensors have no address
        return 0


def by_address(held: Iterable[tuple[object, _T]]) -> dict[int, list[_T]]:
    """Group what goes with tensors by where their values lie; what goes with others is left out."""
    found: dict[int, list[_T]] = {}
    for tensor, each in held:
        at = address(tensor) if isinstance(tensor, Tensor) else 0
        if at:
            found.setdefault(at, []).append(each)
    return found


def version(tensor: Tensor) -> int | None:
    """Return what mostly moves when a tensor is written; those made in inference mode have none."""
    return None if tensor.is_inference() else tensor._version


@torch.no_grad()
def content_of(tensor: Tensor) -> Content | None:
    """Return a copy of a tensor's bytes; None if they cannot be read."""
    try:
        return tuple(as_bytes(part).clone() for part in parts(tensor))
    except READ_ERRORS:
        return None


@torch.no_grad()
def same_content(content: Content | None, tensor: Tensor) -> bool:
    """Tell whether a tensor's bytes are still those of a copy, as far as both could be read."""
    return content is None or has_content(content, tensor) is not False


def has_content(content: Content, tensor: Tensor) -> bool | None:
    """Tell whether a tensor has the bytes of a copy; None if they cannot be read."""
    try:
        now = [as_bytes(part) for part in parts(tensor)]
        moved = [part.to(kept.device) for part, kept in zip(now, content, strict=False)]
    except READ_ERRORS:
        return None
    return len(now) == len(content) and all(map(same_bytes, content, moved))
