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
    if tensor.device.type == "meta" or type(tensor).__name__ == "FakeTensor":
        raise Incomparable(f"it is on the {tensor.device.type} device and has no values")
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
    return tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()


def as_bytes(part: Tensor) -> Tensor:
    """View a plain dense tensor as a flat uint8 tensor; copy only where its layout forbids it."""
    flat = part if part.is_contiguous() else part.contiguous()
    return flat.reshape(-1).view(torch.uint8)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a snapshot holds of one watched tensor.

    Args:
        watched: the tensor that held the name, and its name.
        dtype: its dtype.
        shape: its shape; None while it was uninitialised (lazy modules).
        device: its device.
        requires_grad: whether it asked for a gradient.
        content: copies of the bytes of its parts.
    """

    watched: Watched
    dtype: torch.dtype
    shape: tuple[int, ...] | None
    device: torch.device
    requires_grad: bool
    content: tuple[Tensor, ...]


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    if is_lazy(tensor):
        return None
    return tuple(tensor.shape) if tensor.layout != torch.strided or not tensor.is_nested else ()


def _describe(tensor: Tensor) -> str:
    shape = _shape(tensor)
    return "uninitialised" if shape is None else f"{_dtype(tensor.dtype)} {shape}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(kind: Kind) -> str:
    return "Parameter" if kind == "parameter" else "buffer"


@torch.no_grad()
def take(tensors: Mapping[str, Watched]) -> dict[str, Kept]:
    """Copy the bytes of watched tensors, once for those that are one tensor under several names.

    Args:
        tensors: watched tensors by key.

    Raises:
        GateError: a tensor cannot be compared, e.g. because it is on the meta device.
    """
    copies: dict[int, tuple[Tensor, ...]] = {}
    kept = {}
    for key, watched in tensors.items():
        tensor = watched.tensor
        if id(tensor) not in copies:
            try:
                copies[id(tensor)] = tuple(as_bytes(part).clone() for part in parts(tensor))
            except (Incomparable, RuntimeError, NotImplementedError) as error:
                layout = str(tensor.layout).removeprefix("torch.")
                raise GateError(
                    f"cannot compare {watched.name} ({type(tensor).__name__}, "
                    f"{_dtype(tensor.dtype)}, {layout}): {error}; "
                    f"leave it out with exclude={watched.name!r}"
                ) from error
        kept[key] = Kept(
            watched=watched,
            dtype=tensor.dtype,
            shape=_shape(tensor),
            device=tensor.device,
            requires_grad=tensor.requires_grad,
            content=copies[id(tensor)],
        )
    return kept


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
            return "shape", f"uninitialised -> {_describe(tensor)}"
        return "shape", f"shape {before.shape} -> {shape}"
    if before.dtype != tensor.dtype:
        return "dtype", f"{_dtype(before.dtype)} -> {_dtype(tensor.dtype)}"
    try:
        content = [as_bytes(part) for part in parts(tensor)]
    except (Incomparable, RuntimeError, NotImplementedError) as error:
        return "values", f"can no longer be compared: {error}"
    now = [part.to(kept.device) for part, kept in zip(content, before.content, strict=False)]
    if len(content) == len(before.content) and all(map(same_bytes, before.content, now)):
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
    try:
        old, new = (_numbers(t, tensor.dtype) for t in (old_bytes, new_bytes))
    except (RuntimeError, NotImplementedError):  # dtypes that torch only stores, e.g. bits8
        return f"{int(differs.sum())} of {differs.numel()} values"
    if before.shape == ():
        return arrow(old[0].item(), new[0].item())
    distance = (
        (new - old).abs().double() if new.is_complex() else (new.double() - old.double()).abs()
    )
    distance = torch.where(differs, distance, -1.0).nan_to_num(nan=math.inf)
    worst = int(distance.argmax())
    at = [int(i) for i in torch.unravel_index(torch.tensor(worst), before.shape or (1,))]
    size = f", max |d| {distance[worst].item():.1e}" if math.isfinite(distance[worst]) else ""
    pair = arrow(old[worst].item(), new[worst].item())
    return f"{int(differs.sum())} of {differs.numel()} values{size} at {at}: {pair}"


def _numbers(flat: Tensor, dtype: torch.dtype) -> Tensor:
    values = flat.view(dtype).cpu()
    if dtype.is_complex:
        return values.to(torch.complex128)
    return values.to(torch.float64) if dtype.is_floating_point else values.to(torch.int64)


def arrow(old: complex, new: complex) -> str:
    """Return `old -> new`, with just the digits that tell them apart."""
    texts = [repr(old), repr(new)]
    for digits in range(3, 17):
        texts = [_short(old, digits), _short(new, digits)]
        if texts[0] != texts[1]:
            break
    return f"{texts[0]} -> {texts[1]}"


def _short(value: complex, digits: int) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:.{digits}g}" if isinstance(value, complex) else str(value)
    text = f"{value:.{digits}g}"
    return text if not text.lstrip("-").isdigit() else f"{text}.0"
