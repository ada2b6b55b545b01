"""Keep the bytes of plain tensors together, so that one comparison is for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pytest_bninvariants.invariants import budget
from pytest_bninvariants.invariants.arena import Region, aligned, arena
from pytest_bninvariants.invariants.content import (
    UNREADABLE,
    Content,
    as_bytes,
    in_words,
    is_backed,
    same_bytes,
)
from pytest_bninvariants.invariants.fingerprint import CHUNK, Method, fingerprints, method_on

_NOTHING = torch.empty(0, dtype=torch.uint8, device="cpu")
_PLAIN = frozenset({Tensor, nn.Parameter})
_SMALL = 2**14  # bytes of a tensor that is copied and compared together with others
_FULL = 2**16  # bytes that are copied together, few enough for torch to use one thread for them
_COPIED_BY_BITS = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    }
)


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is nothing but memory that may be copied together with others'."""
    return (
        type(tensor) in _PLAIN
        and tensor.dtype in _COPIED_BY_BITS
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_meta
        and not tensor.is_neg()
        and is_backed(tensor)
    )


@dataclass(slots=True, eq=False)
class Bucket:
    """The bytes of plain tensors of one dtype on one device, one after another.

    Args:
        dtype: their dtype.
        device: where they are.
        keys: whose they are.
        shapes: their shapes.
        total: how many bytes they have.
        flat: the bytes, or their fingerprints.
        region: the arena's memory in which they are, if they are there.
        method: how fingerprints are made, where they are kept instead; of one tensor alone.
    """

    dtype: torch.dtype
    device: torch.device
    keys: list[str] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    total: int = 0
    flat: Tensor = _NOTHING
    region: Region | None = None
    method: Method | None = None

    def fits(self, tensors: list[Tensor]) -> bool:
        """Tell whether tensors are what was kept, but for their bytes."""
        return (
            [tensor.shape for tensor in tensors if not tensor.is_nested] == self.shapes
            and {tensor.dtype for tensor in tensors} == {self.dtype}
            and {tensor.device for tensor in tensors} == {self.device}
            and all(map(is_plain, tensors))
        )

    def fill(self, tensors: list[Tensor]) -> None:
        """Copy the tensors, in the order in which they were added."""
        flat = self.read(tensors)
        if len(tensors) > 1 or self.method is not None:
            self.flat = flat
            return
        self.flat = torch.empty_like(flat) if self.region is None else self.region.take(self.total)
        kept, now = in_words(self.flat, flat)
        kept.copy_(now)

    def read(self, tensors: list[Tensor]) -> Tensor:
        """Return what is to be compared with `flat`; it may be the tensors' own memory."""
        if len(tensors) == 1:
            flat = as_bytes(tensors[0].detach())
            return flat if self.method is None else fingerprints(flat, self.method)
        join = torch.cat if tensors[0].dim() == 1 else torch._utils._flatten_dense_tensors
        return join(tensors).view(torch.uint8)

    def of(self, number: int) -> Tensor | None:
        """Return the bytes of one of the tensors, unless only fingerprints are kept."""
        if self.method is not None:
            return None
        sizes = self._sizes()
        start = sum(sizes[:number])
        return self.flat[start : start + sizes[number]]

    def _sizes(self) -> list[int]:
        return [shape.numel() * self.dtype.itemsize for shape in self.shapes]

    def told(self, content: Content, width: int) -> str | None:
        """Say where fingerprints differ from those of a tensor's content now; None: nowhere."""
        if self.method is None or len(content) != 1 or content[0].numel() != self.total:
            return "content differs"
        found = fingerprints(content[0].to(self.flat.device), self.method)
        now, kept = found.view(torch.int64), self.flat.view(torch.int64)
        places = (now != kept).nonzero().flatten().tolist()
        if not places:
            return None
        chunk = CHUNK // width
        at = f"[{places[0] * chunk}:{min((places[0] + 1) * chunk, self.total // width)}]"
        return f"{len(places)} of {len(now)} fingerprints by {self.method}, first in flatten(){at}"

    def differing(self, flat: Tensor) -> list[str]:
        """Return whose bytes differ from those of others that were read."""
        if len(self.keys) == 1:
            return self.keys
        sizes = self._sizes()
        kept, now = torch.split_with_sizes(self.flat, sizes), torch.split_with_sizes(flat, sizes)
        found = zip(self.keys, kept, now, strict=True)
        return [key for key, old, new in found if not same_bytes(old, new)]


def equal(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[bool]:
    """Tell of each pair of flat uint8 tensors whether it is equal; wait for each device once."""
    pairs = list(pairs)
    found = [False] * len(pairs)
    flags: dict[torch.device, list[tuple[int, Tensor]]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        kept, now = in_words(*pair)
        if kept.device.type == "cpu":
            found[number] = torch.equal(kept, now)
        else:
            flags[kept.device].append((number, (kept != now).any()))
    for asked in flags.values():
        told = torch.stack([flag for _, flag in asked]).tolist()
        for (number, _), differs in zip(asked, told, strict=True):
            found[number] = not differs
    return found


class Packing:
    """Put plain tensors into buckets: small ones together, a large one by itself."""

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._all: list[tuple[Bucket, list[Tensor]]] = []
        self._open: dict[object, tuple[Bucket, list[Tensor]]] = {}

    def add(self, key: str, tensor: Tensor) -> tuple[Bucket, int]:
        """Find a tensor its bucket, and its number there."""
        size, shape = tensor.nbytes, tensor.shape
        large = size > _SMALL
        sort = tensor.dtype, tensor.device, len(shape) == 1
        filling = None if large else self._open.get(sort)
        if filling is None:
            filling = Bucket(tensor.dtype, tensor.device), []
            self._all.append(filling)
            if not large:
                self._open[sort] = filling
        bucket, tensors = filling
        bucket.keys.append(key)
        bucket.shapes.append(shape)
        bucket.total += size
        tensors.append(tensor)
        if not large and bucket.total > _FULL:
            del self._open[sort]
        return bucket, len(tensors) - 1

    def fill(self) -> list[Bucket]:
        """Copy all that was added; return the buckets whose tensors turned out unreadable."""
        large = [bucket for bucket, tensors in self._all if tensors[0].nbytes > _SMALL]
        for device in {bucket.device for bucket in large}:
            _provide(device, [b for b in large if b.device == device], exact=self._exact)
        unread = []
        for bucket, tensors in self._all:
            try:
                bucket.fill(tensors)
            except UNREADABLE:
                unread.append(bucket)
        return unread


def _provide(device: torch.device, buckets: list[Bucket], *, exact: bool) -> None:
    """Decide how much is kept of many bytes: all in the arena, or fingerprints."""
    needed = sum(aligned(bucket.total) for bucket in buckets)
    if exact or budget.allows(needed, device, arena.idle_on(device)):
        region = arena.reserve(needed, device)
        for bucket in buckets:
            bucket.region = region
        return
    arena.release(device)
    method = method_on(device)
    for bucket in buckets:
        bucket.method = method
