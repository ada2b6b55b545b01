"""Keep the bytes of watched tensors, and tell afterwards what differs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.lazy_mapping import LazyMapping
from pytest_bninvariants.selection.tensor_table import TensorTable, WatchedTensor
from pytest_bninvariants.selection.walk import Kind
from pytest_bninvariants.snapshot import value_difference
from pytest_bninvariants.snapshot.buckets import Bucket, compare_pairs, fill_buckets
from pytest_bninvariants.snapshot.tensor_bytes import (
    READ_ERRORS,
    Content,
    as_bytes,
    has_content,
    parts,
    same_bytes,
    shape_of,
)
from pytest_bninvariants.verdict import Change, ChangeKind


class TensorSpec(NamedTuple):
    """What a tensor is besides its bytes; it has no shape while uninitialised (lazy modules)."""

    dtype: torch.dtype
    shape: tuple[int, ...] | None
    layout: torch.layout
    device: torch.device

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> TensorSpec:
        """Read them off a tensor."""
        return cls(tensor.dtype, shape_of(tensor), tensor.layout, tensor.device)

    def __str__(self) -> str:
        return "uninitialised" if self.shape is None else f"{_name(self.dtype)} {self.shape}"


def _name(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")


class TensorCopy(NamedTuple):
    """A tensor by itself: what it is, and copies of the bytes of its parts, and their shapes."""

    spec: TensorSpec
    content: Content
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> TensorCopy:
        """Copy them."""
        found = parts(tensor)
        content = tuple(as_bytes(part).clone() for part in found)
        return cls(
            TensorSpec.from_tensor(tensor), content, tuple(tuple(part.shape) for part in found)
        )


class KeptTensor(NamedTuple):
    """What a snapshot holds of one watched tensor.

    Args:
        watched: the tensor that held the name, and its name.
        requires_grad: whether it asked for a gradient.
        source: its bytes, by themselves or in a bucket.
        number: which one in the bucket it is.
    """

    watched: WatchedTensor
    requires_grad: bool
    source: TensorCopy | Bucket
    number: int = 0

    @property
    def device(self) -> torch.device:
        """Return where the tensor was."""
        return (
            self.source.spec.device if isinstance(self.source, TensorCopy) else self.source.device
        )

    @property
    def is_exact(self) -> bool:
        """Tell whether its bytes are kept, and not only fingerprints."""
        return isinstance(self.source, TensorCopy) or self.source.method is None

    @property
    def spec(self) -> TensorSpec:
        """Return what it was besides its bytes."""
        if isinstance(self.source, TensorCopy):
            return self.source.spec
        shape = tuple(self.source.shapes[self.number])
        return TensorSpec(self.source.dtype, shape, torch.strided, self.source.device)

    @property
    def parts(self) -> TensorCopy | None:
        """Return its parts, for as long as this is held; None where only fingerprints are kept."""
        if isinstance(self.source, TensorCopy):
            return self.source
        flat, spec = self.source.bytes_of(self.number), self.spec
        return None if flat is None else TensorCopy(spec, (flat,), (spec.shape or (),))

    @property
    def value_bytes(self) -> Tensor | None:
        """Return its bytes if they are its values, one after another, and are kept."""
        found, spec = self.parts, self.spec
        if found is None or len(found.content) != 1 or spec.layout != torch.strided:
            return None
        (content,), (shape,) = found.content, found.shapes
        is_whole = content.numel() == math.prod(shape) * spec.dtype.itemsize
        return content if is_whole else None

    @property
    def content(self) -> Content:
        """Return its bytes, for as long as this is held, where the snapshot is exact."""
        found = self.parts
        assert found is not None
        return found.content

    @property
    def dtype(self) -> torch.dtype:
        """Return its dtype."""
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Return its shape; None while it was uninitialised."""
        return self.spec.shape


class Snapshot(LazyMapping[KeptTensor]):
    """What is kept of some tensors, by key.

    Args:
        tensors: the tensors.
        asks: which of them asked for a gradient.
        under: the key under which each is kept, which is another's where both are one tensor.
        buckets: what is kept of most.
        apart: what is kept of each of the others.
    """

    def __init__(
        self,
        tensors: TensorTable,
        asks: list[bool],
        under: list[str],
        buckets: list[Bucket],
        apart: dict[str, TensorCopy],
    ) -> None:
        self.tensors, self.asks, self.buckets = tensors, asks, buckets
        self._under, self._apart = under, apart

    def _make(self) -> dict[str, KeptTensor]:
        places: dict[str, tuple[TensorCopy | Bucket, int]] = {
            key: (bucket, number)
            for bucket in self.buckets
            for number, key in enumerate(bucket.keys)
        }
        places |= {key: (parts, 0) for key, parts in self._apart.items()}
        told = zip(self.tensors.items(), self.asks, self._under, strict=True)
        return {key: KeptTensor(each, asks, *places[under]) for (key, each), asks, under in told}

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.tensors


class BucketComparison(NamedTuple):
    """What comparing the buckets of a snapshot tells.

    Args:
        unchanged: the keys of tensors that have the bytes that were kept.
        untouched: whether all tensors in buckets have them, in the memory where they lay.
    """

    unchanged: set[str]
    untouched: bool


def take_snapshot(
    tensors: Mapping[str, WatchedTensor],
    *,
    ignore_budget: bool = False,
    prefer_exact: Collection[str] = (),
) -> Snapshot:
    """Copy the bytes of watched tensors, once for those that are one tensor under several names.

    The caller must hold `undisturbed()`.

    Args:
        tensors: watched tensors by key.
        ignore_budget: keep bytes, however much memory they take: fingerprints only tell whether
            tensors differ, and some callers need the values.
        prefer_exact: keys to keep exactly, not as fingerprints, as far as the budget allows.

    Raises:
        GateError: a tensor cannot be compared, e.g. because it is on the meta device.
    """
    table = TensorTable.from_mapping(tensors)
    under, distinct = table.columns.keys, table.by_key
    if len(set(map(id, table.tensors))) < len(under):  # some are tied
        firsts = {id(tensor): key for key, tensor in reversed(distinct.items())}
        under = [firsts[id(tensor)] for tensor in table.tensors]
        distinct = {key: distinct[key] for key in under}
    buckets = fill_buckets(distinct, ignore_budget=ignore_budget, prefer_exact=prefer_exact)
    apart: dict[str, TensorCopy] = {}
    if sum(len(bucket.keys) for bucket in buckets) < len(distinct):
        packed = {key for bucket in buckets for key in bucket.keys}
        apart = {key: _apart(table[key]) for key in distinct if key not in packed}
    asks = [tensor.requires_grad for tensor in table.tensors]
    return Snapshot(table, asks, under, buckets, apart)


def _apart(watched: WatchedTensor) -> TensorCopy:
    """Keep a tensor by itself."""
    tensor, name = watched.tensor, watched.name
    try:
        return TensorCopy.from_tensor(tensor)
    except READ_ERRORS as error:
        advice = "" if watched.kind == "output" else f"; leave it out with exclude={name!r}"
        raise GateError(
            f"cannot compare {name} ({type(tensor).__name__}, "
            f"{_name(tensor.dtype)}, {_name(tensor.layout)}): {error}{advice}"
        ) from None


@torch.no_grad()
def is_unchanged(kept: KeptTensor, tensor: Tensor) -> bool:
    """Tell whether a tensor has the bytes, dtype, shape and layout that were kept."""
    if TensorSpec.from_tensor(tensor)[:3] != kept.spec[:3]:
        return False
    found = kept.parts
    if found is None:
        return _difference(kept, tensor) is None
    return has_content(found.content, tensor) is True


@torch.no_grad()
def changes_since(
    kept: Snapshot,
    now: Mapping[str, WatchedTensor],
    new: Iterable[str],
    unchanged: Collection[str] | None = None,
) -> list[Change]:
    """Tell which names' bytes, dtype or shape differ, and which are gone or new.

    Args:
        kept: the snapshot.
        now: all tensors of the model after the step.
        new: keys in `now` that the guard would watch today and did not before.
        unchanged: keys of tensors that are known to be unchanged, if buckets were compared.
    """
    found = []
    known = compare_buckets(kept, now).unchanged if unchanged is None else unchanged
    for key in [key for key in kept if key not in known]:
        before, after = kept[key], now.get(key)
        if after is None:
            found.append(_change(before.watched, "gone", "gone", same_object=False))
            continue
        same_object = after.tensor is before.watched.tensor
        difference = _difference(before, after.tensor)
        if difference is not None:
            told = _change(before.watched, *difference, same_object=same_object)
            found.append(replace(told, exact=before.is_exact))
    for key in new:
        text = f"new: {_kind(now[key].kind)}, {TensorSpec.from_tensor(now[key].tensor)}"
        found.append(_change(now[key], "new", text, same_object=False))
    return found


def compare_buckets(kept: Snapshot, now: Mapping[str, WatchedTensor]) -> BucketComparison:
    """Compare all that is kept in buckets at once; the caller must hold `undisturbed()`."""
    read: dict[Bucket, Tensor] = {}
    held = TensorTable.from_mapping(now).by_key
    untouched = True
    for bucket in kept.buckets:
        live = [held[key] for key in bucket.keys if key in held]
        is_there = bucket.is_of(live)
        untouched &= is_there
        if is_there or bucket.fits(live):
            read[bucket] = bucket.read(live)
    clear: set[str] = set()
    for bucket, same in zip(
        read, compare_pairs((b.flat, flat) for b, flat in read.items()), strict=True
    ):
        clear.update(bucket.keys)
        if not same:
            clear.difference_update(bucket.differing(read[bucket]))
        untouched &= same
    return BucketComparison(clear, untouched)


def _change(watched: WatchedTensor, kind: ChangeKind, text: str, *, same_object: bool) -> Change:
    return Change(
        name=watched.name,
        layer=watched.layer,
        kind=kind,
        text=text,
        same_object=same_object,
    )


def _kind(kind: Kind) -> str:
    return "Parameter" if kind == "parameter" else kind


def _difference(before: KeptTensor, tensor: Tensor) -> tuple[ChangeKind, str] | None:
    was, spec = before.spec, TensorSpec.from_tensor(tensor)
    if was.shape != spec.shape:
        if was.shape is None:
            return "initialised", f"uninitialised -> {spec}"
        return "shape", f"shape {was.shape} -> {spec.shape}"
    if was.dtype != spec.dtype:
        return "dtype", f"{_name(was.dtype)} -> {_name(spec.dtype)}"
    if was.layout != spec.layout:
        return "layout", f"{_name(was.layout)} -> {_name(spec.layout)}"
    try:
        found = parts(tensor)
        content = tuple(as_bytes(part) for part in found)
    except READ_ERRORS as error:
        return "values", f"can no longer be compared: {error}"
    source, kept = before.source, before.parts
    if isinstance(source, Bucket) and kept is None:
        text = source.describe_difference(content, spec.dtype.itemsize)
        return None if text is None else ("values", text)
    assert kept is not None
    now = [part.to(old.device) for part, old in zip(content, kept.content, strict=False)]
    same_shapes = tuple(tuple(part.shape) for part in found) == kept.shapes
    if same_shapes and all(map(same_bytes, kept.content, now)):
        return None
    old = before.value_bytes
    if old is not None and len(now) == 1 and now[0].numel() == old.numel():
        return "values", value_difference.difference(old, now[0], spec.dtype, kept.shapes[0])
    return "values", "content differs"
