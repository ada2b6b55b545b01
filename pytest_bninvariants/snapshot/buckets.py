"""Keep the bytes of plain tensors together, so that one comparison covers all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.devices import wait_for
from pytest_bninvariants.snapshot import budget
from pytest_bninvariants.snapshot.arena import Region, aligned_size, arena
from pytest_bninvariants.snapshot.fingerprints import CHUNK, Method, fingerprints, method_on
from pytest_bninvariants.snapshot.tensor_bytes import (
    OUT_OF_MEMORY,
    READ_ERRORS,
    Content,
    are_backed,
    are_plain,
    as_bytes,
    as_integers,
    join_key,
    join_values,
    same_bytes,
)

_EMPTY = torch.empty(0, dtype=torch.uint8, device="cpu")
# Bytes up to which a tensor shares a bucket: calling an operator takes longer than copying them.
_SMALL = 2**14
# Values up to which a bucket is filled: torch splits longer loops among threads, which is slow if
# the threads are busy. https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/TensorIterator.h
_FULL = 2**15
# Dtypes whose values `torch.cat` and `torch.stack` copy bit by bit.
_COPIED_BY_BITS = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    }
)


def fit_in_buckets(tensors: Sequence[Tensor]) -> bool:
    """Tell whether tensors are plain memory that can be joined with that of other tensors."""
    return (
        are_plain(tensors)
        and _COPIED_BY_BITS.issuperset([tensor.dtype for tensor in tensors])
        and are_backed(tensors)
    )


class TensorPlacement(NamedTuple):
    """Where tensors lie and what they are: while it stays the same, their memory can be read.

    It says nothing about their values. Freeing or replacing their memory changes the addresses.
    """

    types: list[type]
    dtypes: list[torch.dtype]
    shapes: list[torch.Size]
    addresses: list[int]

    @classmethod
    def from_tensors(cls, tensors: list[Tensor]) -> TensorPlacement:
        """Read the placement of tensors; those that are not plain may raise."""
        return cls(
            list(map(type, tensors)),
            [tensor.dtype for tensor in tensors],
            [tensor.shape for tensor in tensors],
            list(map(Tensor.data_ptr, tensors)),
        )


@dataclass(slots=True, eq=False)
class Bucket:
    """The bytes of plain tensors of one dtype on one device, one after another.

    Args:
        dtype: their dtype.
        device: where they are.
        keys: the keys of the tensors.
        placement: where they lay when the bucket was filled.
        total: how many bytes they have together.
        flat: the bytes, or their fingerprints.
        region: the arena's memory that holds them, if they are in the arena.
        method: how the fingerprints are made, if `flat` holds those, of a single tensor.
        goes_to_host: whether `flat` is to be on the host.
        starts: where the bytes of each tensor start in `flat`, and where they end; empty until
            somebody asks for the bytes of one.
    """

    dtype: torch.dtype
    device: torch.device
    keys: list[str] = field(default_factory=list)
    placement: TensorPlacement | None = None
    total: int = 0
    flat: Tensor = _EMPTY
    region: Region | None = None
    method: Method | None = None
    goes_to_host: bool = False
    starts: list[int] = field(default_factory=list)

    @property
    def is_large(self) -> bool:
        """Tell whether it holds a single large tensor."""
        return len(self.keys) == 1 and self.total > _SMALL

    @property
    def is_small(self) -> bool:
        """Tell whether it holds the bytes of small tensors."""
        return self.method is None and not self.is_large

    @property
    def shapes(self) -> list[torch.Size]:
        """Return the tensors' shapes."""
        return [] if self.placement is None else self.placement.shapes

    @property
    def addresses(self) -> list[int]:
        """Return where the tensors lay."""
        return [] if self.placement is None else self.placement.addresses

    def empty_copy(self) -> Bucket:
        """Return a bucket for the same tensors that is yet to be filled."""
        return Bucket(self.dtype, self.device, self.keys, self.placement, self.total)

    def has_placement_of(self, tensors: list[Tensor]) -> bool:
        """Tell whether tensors lie where the kept ones lay, with the same dtypes and shapes."""
        with suppress(*READ_ERRORS):
            return TensorPlacement.from_tensors(tensors) == self.placement
        return False

    def fits(self, tensors: list[Tensor]) -> bool:
        """Tell whether tensors, wherever they lie, can be compared with the kept bytes."""
        return (
            len(tensors) == len(self.keys)
            and fit_in_buckets(tensors)
            and all(t.dtype is self.dtype and t.device == self.device for t in tensors)
            and [tensor.shape for tensor in tensors] == self.shapes
        )

    def fill(self, tensors: list[Tensor]) -> None:
        """Copy the tensors, in the order of the keys."""
        self.placement = self.placement or TensorPlacement.from_tensors(tensors)
        if self.goes_to_host:
            self.flat = self.read([tensor.detach().cpu() for tensor in tensors])
            return
        flat = self.read(tensors)
        if len(tensors) > 1 or self.method is not None:
            self.flat = flat
            return
        self.flat = torch.empty_like(flat) if self.region is None else self.region.take(self.total)
        kept, now = as_integers(self.flat, flat)
        kept.copy_(now)

    def read(self, tensors: list[Tensor]) -> Tensor:
        """Return tensors' bytes or fingerprints as `flat` has them, maybe as a view of a tensor."""
        if len(tensors) == 1:
            flat = as_bytes(tensors[0].detach().resolve_neg())
            return flat if self.method is None else fingerprints(flat, self.method)
        return join_values(tensors).view(torch.uint8)

    def bytes_of(self, number: int) -> Tensor | None:
        """Return the bytes of one of the tensors, unless only fingerprints are kept."""
        if self.method is not None:
            return None
        if not self.starts:
            self.starts = [0, *accumulate(self._sizes())]
        return self.flat[self.starts[number] : self.starts[number + 1]]

    def _sizes(self) -> list[int]:
        return [shape.numel() * self.dtype.itemsize for shape in self.shapes]

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Return the bytes of each tensor in bytes as `flat` has them."""
        return torch.split_with_sizes(flat, self._sizes())

    def describe_difference(self, content: Content, width: int) -> str | None:
        """Say where the fingerprints of a tensor's content differ now; None if they do not.

        Args:
            content: the bytes of the tensor's parts now.
            width: bytes of one of its values.
        """
        if self.method is None or len(content) != 1 or content[0].numel() != self.total:
            return "content differs"
        flat = fingerprints(content[0].to(self.flat.device), self.method)
        now, kept = flat.view(torch.int64), self.flat.view(torch.int64)
        chunks = (now != kept).nonzero().flatten().tolist()
        if not chunks:
            return None
        size = CHUNK // width
        at = f"[{chunks[0] * size}:{min((chunks[0] + 1) * size, self.total // width)}]"
        return f"{len(chunks)} of {len(now)} fingerprints by {self.method}, first in flatten(){at}"

    def move_to_host(self, copy: Tensor) -> None:
        """Take a copy on the host in place of what is on the device, for all who read later."""
        self.flat = copy

    def differing(self, flat: Tensor) -> list[str]:
        """Return the keys of tensors whose kept bytes differ from those that `read` returned."""
        if len(self.keys) == 1:
            return self.keys
        tensors = zip(self.keys, self.split(self.flat), self.split(flat), strict=True)
        return [key for key, old, new in tensors if not same_bytes(old, new)]


def fill_buckets(
    tensors: Mapping[str, Tensor],
    *,
    exact: bool = False,
    prefer_exact: Collection[str] = (),
    within_step: bool = False,
) -> list[Bucket]:
    """Copy plain tensors into buckets: small ones together, a large one by itself.

    Args:
        tensors: tensors by key.
        exact: keep bytes, above the budget on the host.
        prefer_exact: keys to keep exactly, not as fingerprints, as far as the budget allows.
        within_step: whether the user's step runs: then what it does on the current stream is in
            order, so there is no wait for devices, and no plan to keep for the next guard.

    Returns:
        The buckets. Tensors that are not plain, or cannot be read, are in none of them.
    """
    global _latest
    latest = None if within_step else _latest  # another thread may replace it
    plan = latest if latest is not None and latest.fits(tensors) else None
    if plan is None and not fit_in_buckets(list(tensors.values())):
        tensors = {key: tensor for key, tensor in tensors.items() if fit_in_buckets([tensor])}
    buckets = list(_arrange(tensors)) if plan is None else [b.empty_copy() for b in plan.buckets]
    for device in {bucket.device for bucket in buckets if bucket.is_large}:
        large = [bucket for bucket in buckets if bucket.is_large and bucket.device == device]
        _choose_storage(device, large, exact=exact, prefer_exact=prefer_exact)
    filled = []
    devices = () if within_step else {bucket.device for bucket in buckets}
    wait_for(devices)
    for bucket in buckets:
        with suppress(*READ_ERRORS):
            _fill(bucket, [tensors[key] for key in bucket.keys], exact=exact)
            filled.append(bucket)
    wait_for(devices)
    if plan is None and not within_step:
        _latest = _BucketPlan.from_buckets(tensors, filled) if len(filled) == len(buckets) else None
    return filled


def _fill(bucket: Bucket, tensors: list[Tensor], *, exact: bool) -> None:
    """Copy the tensors, or make their fingerprints if the device has no memory for a copy."""
    try:
        bucket.fill(tensors)
    except OUT_OF_MEMORY:
        bucket.region = None
        if (exact or not bucket.is_large) and bucket.device.type != "cpu":
            bucket.goes_to_host = True
        elif bucket.is_large and not exact and bucket.method is None:
            bucket.method = method_on(bucket.device)
        else:
            raise
        bucket.fill(tensors)


class _BucketPlan(NamedTuple):
    """The buckets of some tensors, to be reused while these lie where they did.

    It keeps no tensor alive.

    Args:
        keys: the keys of the tensors, all of which are plain.
        placement: where they lay.
        buckets: their buckets, without bytes.
    """

    keys: list[str]
    placement: TensorPlacement
    buckets: list[Bucket]

    @classmethod
    def from_buckets(cls, tensors: Mapping[str, Tensor], buckets: Iterable[Bucket]) -> _BucketPlan:
        """Return the plan that puts these tensors into buckets like these."""
        placement = TensorPlacement.from_tensors(list(tensors.values()))
        return cls(list(tensors), placement, [bucket.empty_copy() for bucket in buckets])

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Tell whether tensors have the keys and placement of the plan's; then they are plain."""
        values = list(tensors.values())
        with suppress(*READ_ERRORS):
            return (
                list(map(type, values)) == self.placement.types
                and list(tensors) == self.keys
                and TensorPlacement.from_tensors(values) == self.placement
            )
        return False


_latest: _BucketPlan | None = None


def _arrange(tensors: Mapping[str, Tensor]) -> Iterator[Bucket]:
    """Yield buckets for plain tensors, not yet filled."""
    small: dict[tuple[torch.dtype, torch.device, int], list[str]] = {}
    for key, tensor in tensors.items():
        if tensor.nbytes > _SMALL:
            yield Bucket(tensor.dtype, tensor.device, [key], total=tensor.nbytes)
        else:
            small.setdefault(join_key(tensor), []).append(key)
    for (dtype, device, _), keys in small.items():
        bucket = Bucket(dtype, device)
        for key in keys:
            size = tensors[key].nbytes
            if bucket.total + size > _FULL * dtype.itemsize:
                yield bucket
                bucket = Bucket(dtype, device)
            bucket.keys.append(key)
            bucket.total += size
        yield bucket


def _choose_storage(
    device: torch.device, large: list[Bucket], *, exact: bool, prefer_exact: Collection[str]
) -> None:
    """Decide which buckets keep bytes in the arena or on the host, and which keep fingerprints."""
    idle, on_host = arena.idle_on(device), device.type == "cpu"
    in_arena = large
    if not (exact and on_host) and not budget.allows(_size_in_arena(large), device, idle):
        arena.release(device)
        in_arena = []
        for bucket in large:
            preferred = exact or bucket.keys[0] in prefer_exact
            if preferred and budget.allows(_size_in_arena([*in_arena, bucket]), device, idle):
                in_arena.append(bucket)
            elif exact:
                bucket.goes_to_host = True
            else:
                bucket.method = method_on(device)
    if in_arena:
        with suppress(OUT_OF_MEMORY):  # then each bucket asks for its own
            region = arena.reserve(_size_in_arena(in_arena), device)
            for bucket in in_arena:
                bucket.region = region


def _size_in_arena(buckets: Iterable[Bucket]) -> int:
    return sum(aligned_size(bucket.total) for bucket in buckets)
