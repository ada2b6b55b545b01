"""Keep the bytes of watched tensors, and tell afterwards what differs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.invariants.selection import Kind, Watched
from pytest_bninvariants.invariants.verdict import Change

_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


class Incomparable(Exception):
    """Say why a tensor's values cannot be read."""


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the plain dense tensors whose bytes make up a tensor's content.

    Raises:
        Incomparable: the tensor has no values that could be read, as on the meta device.
    """
    if is_lazy(tensor):
        return ()
    if is_traceable_wrapper_subclass(tensor):
        inner, _ = tensor.__tensor_flatten__()
        return tuple(part for name in inner for part in parts(getattr(tensor, name)))
    tensor = tensor.detach()
    if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
        kind = "is fake" if type(tensor).__name__ == "FakeTensor" else "is on the meta device"
        raise Incomparable(f"it {kind} and has no values")
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


def _quantizer(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return (torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64),)
    axis = torch.tensor([tensor.q_per_channel_axis()])
    return tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), axis


def as_bytes(part: Tensor) -> Tensor:
    """View a plain dense tensor as a flat uint8 tensor; copy only where its layout forbids it."""
    dense = part if part.is_contiguous() else part.contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def same_bytes(kept: Tensor, now: Tensor) -> bool:
    """Compare two flat uint8 tensors, in the widest words that fit.

    NaN equals the same NaN and -0.0 differs from 0.0. Through int64 views this is also two to
    three times as fast as `torch.equal` on floats.
    """
    if kept.numel() != now.numel():
        return False
    for word in _WORDS:
        width = word.itemsize
        if all((t.numel() | t.storage_offset()) % width == 0 for t in (kept, now)):
            return torch.equal(kept.view(word), now.view(word))
    raise AssertionError("every tensor of bytes has a uint8 view")


def address(tensor: Tensor) -> int:
    """Return where a tensor's values lie, which its aliases share; 0 if nowhere."""
    try:
        with torch._C.DisableTorchFunction():
            return 0 if is_lazy(tensor) or tensor.is_meta else tensor.data_ptr()
    except RuntimeError:  # sparse and fake tensors have no address
        return 0


Content = tuple[Tensor, ...]
"""Copies of the bytes of a tensor's parts."""
UNREADABLE = (Incomparable, RuntimeError, NotImplementedError)


@torch.no_grad()
def content_of(tensor: Tensor) -> Content | None:
    """Return a copy of a tensor's bytes; None if they cannot be read."""
    try:
        return tuple(as_bytes(part).clone() for part in parts(tensor))
    except UNREADABLE:
        return None


@torch.no_grad()
def same_content(content: Content | None, tensor: Tensor) -> bool:
    """Tell whether a tensor's bytes are still those of a copy, as far as both could be read."""
    return content is None or _has(content, tensor) is not False


def _has(content: Content, tensor: Tensor) -> bool | None:
    """Tell whether a tensor has the bytes of a copy; None if they cannot be read."""
    try:
        now = [as_bytes(part) for part in parts(tensor)]
        moved = [part.to(kept.device) for part, kept in zip(now, content, strict=False)]
    except UNREADABLE:
        return None
    return len(now) == len(content) and all(map(same_bytes, content, moved))


def uniform_factor(kept: Kept, tensor: Tensor) -> float | None:
    """Return the factor below 1 by which all values of a tensor shrank, as weight decay does.

    Rounding makes the factors differ; they count as one while they differ by less than a quarter
    of what is missing to 1.
    """
    plain = len(kept.content) == 1 and kept.dtype == tensor.dtype and kept.dtype.is_floating_point
    if not plain or kept.shape != _shape(tensor) or tensor.layout != torch.strided:
        return None
    old = kept.content[0].view(kept.dtype).double()
    new = as_bytes(tensor.detach()).to(old.device).view(kept.dtype).double()
    counts = old.abs() > torch.finfo(kept.dtype).tiny
    factors = new[counts] / old[counts]
    if not len(factors):
        return None
    factor, spread = float(factors.mean()), float(factors.max() - factors.min())
    return factor if 0 < factor < 1 and spread <= (1 - factor) / 4 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a snapshot holds of one watched tensor.

    Args:
        watched: the tensor that held the name, and its name.
        dtype: its dtype.
        shape: its shape; None while it was uninitialised (lazy modules).
        device: its device.
        layout: its layout.
        requires_grad: whether it asked for a gradient.
        shapes: the shapes of its parts.
        content: copies of their bytes.
    """

    watched: Watched
    dtype: torch.dtype
    shape: tuple[int, ...] | None
    device: torch.device
    layout: torch.layout
    requires_grad: bool
    shapes: tuple[torch.Size, ...]
    content: tuple[Tensor, ...]


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    if is_lazy(tensor):
        return None
    return tuple(tensor.shape) if tensor.layout != torch.strided or not tensor.is_nested else ()


def _describe(tensor: Tensor) -> str:
    shape = _shape(tensor)
    return "uninitialised" if shape is None else f"{_name(tensor.dtype)} {shape}"


def _name(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")


def _kind(kind: Kind) -> str:
    return "Parameter" if kind == "parameter" else kind


@torch.no_grad()
def take(tensors: Mapping[str, Watched]) -> dict[str, Kept]:
    """Copy the bytes of watched tensors, once for those that are one tensor under several names.

    Args:
        tensors: watched tensors by key.

    Raises:
        GateError: a tensor cannot be compared, e.g. because it is on the meta device.
    """
    copies: dict[int, tuple[tuple[torch.Size, ...], tuple[Tensor, ...]]] = {}
    kept = {}
    for key, watched in tensors.items():
        tensor = watched.tensor
        if id(tensor) not in copies:
            try:
                found = parts(tensor)
                content = tuple(as_bytes(part).clone() for part in found)
                copies[id(tensor)] = tuple(part.shape for part in found), content
            except UNREADABLE as error:
                advice = f"; leave it out with exclude={watched.name!r}"
                raise GateError(
                    f"cannot compare {watched.name} ({type(tensor).__name__}, "
                    f"{_name(tensor.dtype)}, {_name(tensor.layout)}): {error}"
                    f"{'' if watched.kind == 'output' else advice}"
                ) from None
        shapes, content = copies[id(tensor)]
        kept[key] = Kept(
            watched=watched,
            dtype=tensor.dtype,
            shape=_shape(tensor),
            device=tensor.device,
            layout=tensor.layout,
            requires_grad=tensor.requires_grad,
            shapes=shapes,
            content=content,
        )
    return kept


@torch.no_grad()
def unchanged(kept: Kept, tensor: Tensor) -> bool:
    """Tell whether a tensor has the bytes, dtype, shape and layout that were kept."""
    facts = _shape(tensor), tensor.dtype, tensor.layout
    if facts != (kept.shape, kept.dtype, kept.layout):
        return False
    return _has(kept.content, tensor) is True


@torch.no_grad()
def changes(
    kept: Mapping[str, Kept], now: Mapping[str, Watched], new: Iterable[str]
) -> list[Change]:
    """Tell which names' bytes, dtype or shape differ, and which are gone or new.

    Args:
        kept: the snapshot.
        now: all tensors of the model after the step.
        new: keys in `now` that the guard would watch today and did not before.
    """
    found = []
    for key, before in kept.items():
        after = now.get(key)
        if after is None:
            found.append(_change(before.watched, "gone", "gone", same_object=False))
            continue
        same_object = after.tensor is before.watched.tensor
        difference = _difference(before, after)
        if difference is not None:
            found.append(_change(before.watched, *difference, same_object=same_object))
    for key in new:
        text = f"new: {_kind(now[key].kind)}, {_describe(now[key].tensor)}"
        found.append(_change(now[key], "new", text, same_object=False))
    return found


def _change(watched: Watched, kind: object, text: str, *, same_object: bool) -> Change:
    return Change(
        name=watched.name,
        layer=watched.layer,
        kind=kind,  # type: ignore[arg-type]
        text=text,
        same_object=same_object,
    )


def _difference(before: Kept, after: Watched) -> tuple[str, str] | None:
    tensor = after.tensor
    shape = _shape(tensor)
    if before.shape != shape:
        if before.shape is None:
            return "initialised", f"uninitialised -> {_describe(tensor)}"
        return "shape", f"shape {before.shape} -> {shape}"
    if before.dtype != tensor.dtype:
        return "dtype", f"{_name(before.dtype)} -> {_name(tensor.dtype)}"
    if before.layout != tensor.layout:
        return "layout", f"{_name(before.layout)} -> {_name(tensor.layout)}"
    try:
        found = parts(tensor)
        content = [as_bytes(part) for part in found]
    except UNREADABLE as error:
        return "values", f"can no longer be compared: {error}"
    now = [part.to(kept.device) for part, kept in zip(content, before.content, strict=False)]
    same_shapes = tuple(part.shape for part in found) == before.shapes
    if same_shapes and all(map(same_bytes, before.content, now)):
        return None
    return "values", _values(before, tensor, now)


def _values(before: Kept, tensor: Tensor, now: list[Tensor]) -> str:
    """Put a change of values into words: how many, how far, and where it is largest."""
    plain = tensor.layout == torch.strided and len(now) == len(before.content) == 1
    if not plain or now[0].numel() != before.content[0].numel():
        return "content differs"
    old_bytes, new_bytes = before.content[0], now[0]
    width = tensor.element_size()
    differs = (old_bytes.view(-1, width) != new_bytes.view(-1, width)).any(1)
    old, new = (flat.view(tensor.dtype).cpu() for flat in (old_bytes, new_bytes))
    try:
        distance = _distance(old, new)
    except (RuntimeError, NotImplementedError):  # dtypes that torch only stores, e.g. bits8
        return f"{int(differs.sum())} of {differs.numel()} values"
    if before.shape == ():
        return arrow(_number(old[0]), _number(new[0]))
    distance = torch.where(differs.cpu(), distance, -1.0).nan_to_num(nan=math.inf, posinf=math.inf)
    worst = int(distance.argmax())
    at = [int(i) for i in torch.unravel_index(torch.tensor(worst), before.shape or (1,))]
    size = f", max |d| {distance[worst].item():.1e}" if math.isfinite(distance[worst]) else ""
    pair = arrow(_number(old[worst]), _number(new[worst]))
    return f"{int(differs.sum())} of {differs.numel()} values{size} at {at}: {pair}"


def _distance(old: Tensor, new: Tensor) -> Tensor:
    wide = torch.complex128 if old.is_complex() else torch.float64
    return (new.to(wide) - old.to(wide)).abs()


def _number(value: Tensor) -> complex:
    if value.dtype.is_floating_point:
        return float(value.to(torch.float64))
    if value.is_complex():
        return complex(value.to(torch.complex128).item())
    return int(value.item())


def arrow(old: complex, new: complex) -> str:
    """Return `old -> new`, with just the digits that tell them apart."""
    texts = [repr(old), repr(new)]
    for digits in range(3, 18):
        texts = [_short(old, digits), _short(new, digits)]
        if texts[0] != texts[1] and not _overflow((old, new), texts):
            break
    return f"{texts[0]} -> {texts[1]}"


def _overflow(numbers: tuple[complex, complex], texts: list[str]) -> bool:
    """Tell whether rounding has made a number infinite, as it does next to the largest float."""
    return any(
        isinstance(number, float) and math.isfinite(number) and not math.isfinite(float(text))
        for number, text in zip(numbers, texts, strict=True)
    )


def _short(value: complex, digits: int) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:.{digits}g}" if isinstance(value, complex) else str(value)
    text = f"{value:.{digits}g}"
    return text if not text.lstrip("-").isdigit() else f"{text}.0"
