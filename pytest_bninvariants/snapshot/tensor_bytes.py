"""The one place that knows the kinds of tensors, and which bytes make up each.

To support another kind, add it to `_KINDS`.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterable, Sequence
from operator import ge
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bninvariants.snapshot.host_copies import on_host
from pytest_bninvariants.torch_internals.private_api import (
    flatten_dense_tensors,
    is_traceable_wrapper_subclass,
    sparse_indices,
    sparse_values,
    tree_leaves,
    version_counter,
)

_PLAIN_TYPES = frozenset({Tensor, nn.Parameter})
_TRACER_TYPES = frozenset({"FakeTensor", "FunctionalTensor"})
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_PIECE = 2**16
OUT_OF_MEMORY: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""What torch raises if a device has no memory left; torch 2.4 has it in `torch.cuda` alone."""
Content = tuple[Tensor, ...]
"""Copies of the bytes of a tensor's parts."""


class UnreadableTensor(Exception):
    """Raised with the reason why the values of a tensor cannot be read."""


READ_ERRORS = (UnreadableTensor, RuntimeError, NotImplementedError, TypeError)
"""What reading a tensor may raise; classes of other libraries raise various errors."""


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is strided memory and its class is Tensor or Parameter."""
    return type(tensor) in _PLAIN_TYPES and not (
        tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta
    )


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all tensors are plain, faster than `is_plain` for each."""
    return _PLAIN_TYPES.issuperset(map(type, tensors)) and not any(
        t.layout is not torch.strided or t.is_nested or t.is_meta for t in tensors
    )


def is_uninitialised(tensor: Tensor) -> bool:
    """Tell whether a tensor awaits the first forward of a lazy module, and has no shape yet."""
    return bool(is_lazy(tensor))


def is_under_way(tensor: Tensor) -> bool:
    """Tell whether a tensor is the result of a collective that nobody has waited for yet.

    Its class has no public name:
    https://github.com/pytorch/pytorch/blob/main/torch/distributed/_functional_collectives.py
    """
    return type(tensor).__name__ == "AsyncCollectiveTensor"


def have_values(tensors: Iterable[Tensor]) -> bool:
    """Tell whether tensors have values: those of tracers and of the meta device have none."""
    return not any(t.is_meta or type(t).__name__ in _TRACER_TYPES for t in tensors)


class TensorKind(NamedTuple):
    """A kind of tensor.

    Args:
        matches: tells whether a tensor is of this kind, if no earlier kind matches it.
        parts: returns the plain dense tensors whose bytes make up a tensor's content.
        values: which of these hold its values; the others are indices, scales and the like.
    """

    matches: Callable[[Tensor], bool]
    parts: Callable[[Tensor], tuple[Tensor, ...]]
    values: slice = slice(None)


def _has_no_values(tensor: Tensor) -> bool:
    return tensor.is_meta or type(tensor).__name__ == "FakeTensor"


def _refuse(tensor: Tensor) -> tuple[Tensor, ...]:
    kind = "is fake" if type(tensor).__name__ == "FakeTensor" else "is on the meta device"
    raise UnreadableTensor(f"it {kind} and has no values")


def _wrapper_parts(tensor: Any) -> tuple[Tensor, ...]:
    """Return what a wrapper subclass computes with: its tensors, and the numbers beside them.

    Other values, such as flags or a device mesh, do not count as content, since requires_grad is
    among them. Nor do integers of torch's own subclasses, which are sizes.
    """
    names, context = tensor.__tensor_flatten__()
    leaves = [getattr(tensor, name) for name in names] + tree_leaves(context)
    pieces = [part for leaf in leaves if isinstance(leaf, Tensor) for part in parts(leaf)]
    is_torchs = type(tensor).__module__.startswith("torch.")
    types = (float, complex) if is_torchs else (float, complex, int)
    numbers = [leaf for leaf in leaves if type(leaf) in types]
    if numbers:
        pieces.append(torch.frombuffer(bytearray(repr(numbers), "utf-8"), dtype=torch.uint8))
    return tuple(pieces)


def _awaited_parts(tensor: Any) -> tuple[Tensor, ...]:
    """Wait for a collective that is under way, and return the parts of its result."""
    return parts(tensor.trigger_wait())


def _coo_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    tensor = tensor.detach()
    return sparse_indices(tensor), sparse_values(tensor)


def _row_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    tensor = tensor.detach()
    return tensor.crow_indices(), tensor.col_indices(), tensor.values()


def _column_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    tensor = tensor.detach()
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()


def _quantized_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    tensor = tensor.detach()
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale = [tensor.q_scale(), tensor.q_zero_point()]
        return tensor.int_repr(), torch.tensor(scale, dtype=torch.float64)
    axis = torch.tensor([tensor.q_per_channel_axis()])
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return tensor.int_repr(), scales, zeros, axis


def _has_layout(*layouts: torch.layout) -> Callable[[Tensor], bool]:
    return lambda tensor: tensor.layout in layouts


_WRAPPER = TensorKind(is_traceable_wrapper_subclass, _wrapper_parts)
_DENSE = TensorKind(
    lambda tensor: True, lambda tensor: (tensor.detach().resolve_conj().resolve_neg(),)
)
_AWAITED = TensorKind(is_under_way, _awaited_parts)
_KINDS = (
    TensorKind(is_lazy, lambda tensor: ()),
    _AWAITED,
    _WRAPPER,
    TensorKind(_has_no_values, _refuse),
    TensorKind(_has_layout(torch.sparse_coo), _coo_parts, slice(1, None)),
    TensorKind(_has_layout(torch.sparse_csr, torch.sparse_bsr), _row_parts, slice(2, None)),
    TensorKind(_has_layout(torch.sparse_csc, torch.sparse_bsc), _column_parts, slice(2, None)),
    TensorKind(
        lambda tensor: tensor.is_nested,
        lambda tensor: tuple(part for piece in tensor.detach().unbind() for part in parts(piece)),
    ),
    TensorKind(lambda tensor: tensor.is_mkldnn, lambda tensor: (tensor.detach().to_dense(),)),
    TensorKind(lambda tensor: tensor.is_quantized, _quantized_parts, slice(1)),
    _DENSE,
)


def _kind_of(tensor: Tensor) -> TensorKind:
    return next(kind for kind in _KINDS if kind.matches(tensor))


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the plain dense tensors whose bytes make up a tensor's content.

    Raises:
        UnreadableTensor: if the tensor has no values, as on the meta device.
    """
    tensor = on_host(tensor)
    return _kind_of(tensor).parts(tensor)


def values_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the plain dense tensors that hold a tensor's values.

    Raises:
        UnreadableTensor: if the tensor has no values, as on the meta device.
    """
    tensor = on_host(tensor)
    if is_plain(tensor) and not tensor.is_quantized:
        return (tensor,)
    kind = _kind_of(tensor)
    return kind.parts(tensor)[kind.values]


def dense_values(tensor: Tensor) -> Tensor | None:
    """Return a tensor's values as one plain dense tensor of its dtype, if it stores them so."""
    tensor = on_host(tensor)
    kind = _DENSE if is_plain(tensor) and not tensor.is_quantized else _kind_of(tensor)
    if kind is _WRAPPER or kind is _AWAITED:
        pieces = parts(tensor)
        return pieces[0] if len(pieces) == 1 and pieces[0].dtype == tensor.dtype else None
    return tensor if kind is _DENSE else None


def shape_of(tensor: Tensor) -> tuple[int, ...] | None:
    """Return a tensor's shape: None before it is initialised, () for a nested tensor."""
    if is_lazy(tensor):
        return None
    return () if tensor.layout is torch.strided and tensor.is_nested else tuple(tensor.shape)


def as_bytes(part: Tensor) -> Tensor:
    """View a plain dense tensor as a flat uint8 tensor; copy only where its layout forbids it.

    Raises:
        UnreadableTensor: if its memory was freed.
    """
    if not are_backed([part]):
        raise UnreadableTensor("its memory was freed")
    dense = part if part.is_contiguous() else part.contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def are_backed(tensors: Sequence[Tensor]) -> bool:
    """Tell whether plain tensors have all their memory; FSDP frees it while they are sharded.

    Torch reads freed memory without a check, and the process crashes.
    """
    available = map(torch.UntypedStorage.nbytes, map(Tensor.untyped_storage, tensors))
    if any(map(Tensor.storage_offset, tensors)) or not all(map(Tensor.is_contiguous, tensors)):
        ends = [extent(each) + int(each.storage_offset()) * each.itemsize for each in tensors]
    else:
        ends = [each.nbytes for each in tensors]
    return all(map(ge, available, ends))


def extent(part: Tensor) -> int:
    """Return how many bytes lie from the first to the last of a plain dense tensor."""
    if part.is_contiguous():  # as each without values is
        return part.nbytes
    last = sum((n - 1) * step for n, step in zip(part.shape, part.stride(), strict=True))
    return (last + 1) * part.itemsize


def as_integers(*flat: Tensor) -> list[Tensor]:
    """View flat uint8 tensors of one length as the widest integers that fit all of them.

    As integers, NaN equals the same NaN and -0.0 differs from 0.0. Comparing integers takes a half
    to a third of the time of comparing floats.
    """
    sizes = [size for each in flat for size in (each.numel(), each.storage_offset())]
    widest = next(dtype for dtype in _INTEGERS if not any(size % dtype.itemsize for size in sizes))
    return [each.view(widest) for each in flat]


def join_key(tensor: Tensor) -> tuple[torch.dtype, torch.device, int]:
    """Return what tensors must have in common so that `join_values` can join them."""
    return tensor.dtype, tensor.device, min(tensor.dim(), 2)


def join_values(tensors: list[Tensor]) -> Tensor:
    """Join the values of tensors that have the same join key into one flat tensor."""
    if tensors[0].dim() < 2:
        return (torch.cat if tensors[0].dim() else torch.stack)(tensors)
    return flatten_dense_tensors(tensors)


def same_bytes(kept: Tensor, now: Tensor) -> bool:
    """Compare two flat uint8 tensors."""
    if kept.numel() != now.numel():
        return False
    if kept.device.type == "cpu":
        return torch.equal(*as_integers(kept, now))
    return not bool(differ(kept, now))


def differ(kept: Tensor, now: Tensor) -> Tensor:
    """Compare two flat uint8 tensors of one length on one device, and do not wait for the answer.

    Returns:
        Whether they differ, a bool without dimensions on that device.
    """
    kept, now = as_integers(kept, now)
    try:
        return (kept != now).any()
    except OUT_OF_MEMORY:  # the answers for each value take an eighth of the tensor's memory
        pieces = zip(torch.split(kept, _PIECE), torch.split(now, _PIECE), strict=True)
        return torch.stack([(old != new).any() for old, new in pieces]).any()


def version(tensor: Tensor) -> int | None:
    """Return the counter that most writes to a tensor increase; None for an inference tensor."""
    return None if tensor.is_inference() else version_counter(tensor)


@torch.no_grad()
def content_of(tensor: Tensor) -> Content | None:
    """Return a copy of a tensor's bytes; None if they cannot be read."""
    try:
        return tuple(as_bytes(part).clone() for part in parts(tensor))
    except READ_ERRORS:
        return None


@torch.no_grad()
def same_content(content: Content | None, tensor: Tensor) -> bool:
    """Tell whether a tensor still has the bytes of a copy; True if either could not be read."""
    return content is None or has_content(content, tensor) is not False


def has_content(content: Content, tensor: Tensor) -> bool | None:
    """Tell whether a tensor has the bytes of a copy; None if they cannot be read."""
    try:
        now = [as_bytes(part) for part in parts(tensor)]
        moved = [part.to(kept.device) for part, kept in zip(now, content, strict=False)]
    except READ_ERRORS:
        return None
    return len(now) == len(content) and all(map(same_bytes, content, moved))


def sha256_of(content: Content) -> str:
    """Return the SHA-256 of the bytes of a tensor's parts."""
    sha256 = hashlib.sha256()
    for part in content:
        on_cpu = part.cpu()
        sha256.update(ctypes.string_at(on_cpu.data_ptr(), on_cpu.numel()))
    return sha256.hexdigest()


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Return one digest of tensors: of what they hold, their dtypes and their shapes.

    Raises:
        UnreadableTensor: if the values of one cannot be read.
    """
    sha256 = hashlib.sha256()
    for tensor in tensors:
        content = tuple(as_bytes(part) for part in parts(tensor.detach()))
        text = f"{tensor.dtype} {tuple(tensor.shape)} {sha256_of(content)}\n"
        sha256.update(text.encode())
    return sha256.hexdigest()
