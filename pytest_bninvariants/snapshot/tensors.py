"""Keep the bytes of watched tensors, and tell afterwards what differs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.lazy_mapping import OnDemand
from pytest_bninvariants.selection.model_names import Kind, Table, Watched
from pytest_bninvariants.snapshot import value_difference
from pytest_bninvariants.snapshot.buckets import Bucket, equal, pack
from pytest_bninvariants.snapshot.tensor_bytes import (
    UNREADABLE,
    Content,
    as_bytes,
    has_content,
    parts,
    same_bytes,
)
from pytest_bninvariants.verdict import Change, ChangeKind


class Facts(NamedTuple):
    """What a tensor is besides its bytes; it has no shape while uninitialised (lazy modules)."""

    dtype: torch.dtype
    shape: tuple[int, ...] | None
    layout: torch.layout
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Facts:
        """Read them off a tensor."""
        return cls(tensor.dtype, _shape(tensor), tensor.layout, tensor.device)

    def __str__(self) -> str:
        return "uninitialised" if self.shape is None else f"{_name(self.dtype)} {self.shape}"


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    if is_lazy(tensor):
        return None
    return tuple(tensor.shape) if tensor.layout != torch.strided or not tensor.is_nested else ()


def _name(value: torch.dtype | torch.layout) -> str:
    return str(value).removeprefix("torch.")


class Parts(NamedTuple):
    """A tensor by itself: what it is, and copies of the bytes of its parts, and their shapes."""

    facts: Facts
    content: Content
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Parts:
        """Copy them."""
        found = parts(tensor)
        content = tuple(as_bytes(part).clone() for part in found)
        return cls(Facts.of(tensor), content, tuple(tuple(part.shape) for part in found))


class Kept(NamedTuple):
    """What a snapshot holds of one watched tensor.

    Args:
        watched: the tensor that held the name, and its name.
        requires_grad: whether it asked for a gradient.
        source: its bytes, by themselves or in a bucket.
        number: which one in the bucket it is.
    """

    watched: Watched
    requires_grad: bool
    source: Parts | Bucket
    number: int = 0

    @property
    def device(self) -> torch.device:
        """Return where the tensor was."""
        return self.source.facts.device if isinstance(self.source, Parts) else self.source.device

    @property
    def exact(self) -> bool:
        """Tell whether its bytes are kept, and not only fingerprints."""
        return isinstance(self.source, Parts) or self.source.method is None

    @property
    def facts(self) -> Facts:
        """Return what it was besides its bytes."""
        if isinstance(self.source, Parts):
            return self.source.facts
        shape = tuple(self.source.shapes[self.number])
        return Facts(self.source.dtype, shape, torch.strided, self.source.device)

    @property
    def parts(self) -> Parts | None:
        """Return its parts, for as long as this is held; None where only fingerprints are kept."""
        if isinstance(self.source, Parts):
            return self.source
        flat, facts = self.source.of(self.number), self.facts
        return None if flat is None else Parts(facts, (flat,), (facts.shape or (),))

    @property
    def plain_bytes(self) -> Tensor | None:
        """Return its bytes if they are its values, one after another, and are kept."""
        found, facts = self.parts, self.facts
        if found is None or len(found.content) != 1 or facts.layout != torch.strided:
            return None
        (content,), (shape,) = found.content, found.shapes
        is_whole = content.numel() == math.prod(shape) * facts.dtype.itemsize
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
        return self.facts.dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Return its shape; None while it was uninitialised."""
        return self.facts.shape

    @property
    def layout(self) -> torch.layout:
        """Return its layout."""
        return self.facts.layout


class Snapshot(OnDemand[Kept]):
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
        tensors: Table,
        asks: list[bool],
        under: list[str],
        buckets: list[Bucket],
        apart: dict[str, Parts],
    ) -> None:
        self.tensors, self.asks, self.buckets = tensors, asks, buckets
        self._under, self._apart = under, apart

    def _make(self) -> dict[str, Kept]:
        places: dict[str, tuple[Parts | Bucket, int]] = {
            key: (bucket, number)
            for bucket in self.buckets
            for number, key in enumerate(bucket.keys)
        }
        places |= {key: (parts, 0) for key, parts in self._apart.items()}
        told = zip(self.tensors.items(), self.asks, self._under, strict=True)
        return {key: Kept(each, asks, *places[under]) for (key, each), asks, under in told}

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.tensors


class Glance(NamedTuple):
    """What a glance tells of tensors that were kept.

    Args:
        alike: the keys of those that are as they were, as far as it tells.
        stays: whether all of them that it tells of are, and in the same memory.
    """

    alike: set[str]
    stays: bool


def take_snapshot(
    tensors: Mapping[str, Watched], *, exact: bool = False, rather: Collection[str] = ()
) -> Snapshot:
    """Copy the bytes of watched tensors, once for those that are one tensor under several names.

    Who calls it is `undisturbed`.

    Args:
        tensors: watched tensors by key.
        exact: keep bytes whatever they take, for who needs more than to know whether they differ.
        rather: keys of what is rather kept than fingerprinted, as far as the budget goes.

    Raises:
        GateError: a tensor cannot be compared, e.g. because it is on the meta device.
    """
    table = Table.of(tensors)
    under, distinct = table.rows.keys, table.held
    if len(set(map(id, table.tensors))) < len(under):  # some are tied
        firsts = {id(tensor): key for key, tensor in reversed(distinct.items())}
        under = [firsts[id(tensor)] for tensor in table.tensors]
        distinct = {key: distinct[key] for key in under}
    buckets = pack(distinct, exact=exact, rather=rather)
    apart: dict[str, Parts] = {}
    if sum(len(bucket.keys) for bucket in buckets) < len(distinct):
        packed = {key for bucket in buckets for key in bucket.keys}
        apart = {key: _apart(table[key]) for key in distinct if key not in packed}
    asks = [tensor.requires_grad for tensor in table.tensors]
    return Snapshot(table, asks, under, buckets, apart)


def _apart(watched: Watched) -> Parts:
    """Keep a tensor by itself."""
    tensor, name = watched.tensor, watched.name
    try:
        return Parts.of(tensor)
    except UNREADABLE as error:
        advice = "" if watched.kind == "output" else f"; leave it out with exclude={name!r}"
        raise GateError(
            f"cannot compare {name} ({type(tensor).__name__}, "
            f"{_name(tensor.dtype)}, {_name(tensor.layout)}): {error}{advice}"
        ) from None


@torch.no_grad()
def unchanged(kept: Kept, tensor: Tensor) -> bool:
    """Tell whether a tensor has the bytes, dtype, shape and layout that were kept."""
    if Facts.of(tensor)[:3] != kept.facts[:3]:
        return False
    found = kept.parts
    if found is None:
        return _difference(kept, tensor) is None
    return has_content(found.content, tensor) is True


@torch.no_grad()
def changes_since(
    kept: Snapshot,
    now: Mapping[str, Watched],
    new: Iterable[str],
    alike: Collection[str] | None = None,
) -> list[Change]:
    """Tell which names' bytes, dtype or shape differ, and which are gone or new.

    Args:
        kept: the snapshot.
        now: all tensors of the model after the step.
        new: keys in `now` that the guard would watch today and did not before.
        alike: what a glance told of both, where one was cast.
    """
    found = []
    known = glance(kept, now).alike if alike is None else alike
    for key in [key for key in kept if key not in known]:
        before, after = kept[key], now.get(key)
        if after is None:
            found.append(_change(before.watched, "gone", "gone", same_object=False))
            continue
        same_object = after.tensor is before.watched.tensor
        difference = _difference(before, after.tensor)
        if difference is not None:
            told = _change(before.watched, *difference, same_object=same_object)
            found.append(replace(told, exact=before.exact))
    for key in new:
        text = f"new: {_kind(now[key].kind)}, {Facts.of(now[key].tensor)}"
        found.append(_change(now[key], "new", text, same_object=False))
    return found


def glance(kept: Snapshot, now: Mapping[str, Watched]) -> Glance:
    """Compare all that is kept in buckets at once; the caller must hold `undisturbed()`."""
    read: dict[Bucket, Tensor] = {}
    held = Table.of(now).held
    stays = True
    for bucket in kept.buckets:
        live = [held[key] for key in bucket.keys if key in held]
        is_there = bucket.is_of(live)
        stays &= is_there
        if is_there or bucket.fits(live):
            read[bucket] = bucket.read(live)
    clear: set[str] = set()
    for bucket, same in zip(read, equal((b.flat, flat) for b, flat in read.items()), strict=True):
        clear.update(bucket.keys)
        if not same:
            clear.difference_update(bucket.differing(read[bucket]))
        stays &= same
    return Glance(clear, stays)


def _change(watched: Watched, kind: ChangeKind, text: str, *, same_object: bool) -> Change:
    return Change(
        name=watched.name,
        layer=watched.layer,
        kind=kind,
        text=text,
        same_object=same_object,
    )


def _kind(kind: Kind) -> str:
    return "Parameter" if kind == "parameter" else kind


def _difference(before: Kept, tensor: Tensor) -> tuple[ChangeKind, str] | None:
    was, facts = before.facts, Facts.of(tensor)
    if was.shape != facts.shape:
        if was.shape is None:
            return "initialised", f"uninitialised -> {facts}"
        return "shape", f"shape {was.shape} -> {facts.shape}"
    if was.dtype != facts.dtype:
        return "dtype", f"{_name(was.dtype)} -> {_name(facts.dtype)}"
    if was.layout != facts.layout:
        return "layout", f"{_name(was.layout)} -> {_name(facts.layout)}"
    try:
        found = parts(tensor)
        content = tuple(as_bytes(part) for part in found)
    except UNREADABLE as error:
        return "values", f"can no longer be compared: {error}"
    source, kept = before.source, before.parts
    if isinstance(source, Bucket) and kept is None:
        text = source.told(content, facts.dtype.itemsize)
        return None if text is None else ("values", text)
    assert kept is not None
    now = [part.to(old.device) for part, old in zip(content, kept.content, strict=False)]
    same_shapes = tuple(tuple(part.shape) for part in found) == kept.shapes
    if same_shapes and all(map(same_bytes, kept.content, now)):
        return None
    old = before.plain_bytes
    if old is not None and len(now) == 1 and now[0].numel() == old.numel():
        return "values", value_difference.difference(old, now[0], facts.dtype, kept.shapes[0])
    return "values", "content differs"
