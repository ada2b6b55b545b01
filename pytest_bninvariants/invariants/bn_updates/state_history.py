"""The states that a BN layer's statistics went through, and what led to each."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from ctypes import string_at
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.reference import Statistics
from pytest_bninvariants.selection.bn_layers import BN_STATE
from pytest_bninvariants.snapshot.buckets import fit_in_buckets
from pytest_bninvariants.snapshot.host_copies import on_host
from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, Content, content_of
from pytest_bninvariants.verdict import Place

# how many of each are kept, so that memory does not grow with the length of a step
_MOST_STATES, _MOST_PLACES, _MOST_BATCHES, _MOST_WRONG = 1024, 4, 8, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongStatistic:
    """A statistic that an update set to other values than the reference.

    Args:
        name: its name in the layer.
        update: which update it was, from 1.
        text: how far off it is, and where.
        fits: the common mistake that would explain it; empty if none does.
    """

    name: str
    update: int
    text: str
    fits: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchKey:
    """What identifies a batch.

    Args:
        step: how many optimizer steps came before it: a batch may be used again after one.
        digest: the digest of its statistics.
        count: how many values each channel has.
    """

    step: int
    digest: bytes
    count: int

    @classmethod
    def from_statistics(cls, step: int, statistics: Statistics, count: int) -> BatchKey:
        """Return the key of a batch with these statistics, which are float64 and on the CPU."""
        return cls(step=step, digest=_digest(statistics), count=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What led from the state at the start to a later one, without updates that were undone.

    Args:
        updates: how many updates.
        recomputed: how many of them ran inside a backward pass.
        repeated: how many used a batch again before an optimizer stepped.
        in_eval: how many ran while the layer was in eval.
        by_calls: how many were calls of torch's function with the layer's statistics, and not
            forwards of the layer: the calling code moves the counter before or after, if at all.
        uncounted: how many the counter did not count, which only a cumulative average needs.
        miscounted: how many it counted as more or less than one, or did not count although the
            average needs the count.
        rounded_away: how many a dtype that is too narrow has rounded away.
        constant: how many had a batch in which each channel has one value.
        unjudged: how many were not checked against the reference.
        by_custom_forward: how many of the unjudged ones a custom forward made.
        wrong: the first statistics that were not what the reference says.
        maybe_wrong: the first ones of a layer that may differ on purpose.
        places: where the first updates ran.
        batches: the last batches.
        written: what wrote besides the updates: `loaded`, `reset` or `in-place`.
        written_at: where it wrote, if that was seen.
    """

    updates: int = 0
    recomputed: int = 0
    repeated: int = 0
    in_eval: int = 0
    by_calls: int = 0
    uncounted: int = 0
    miscounted: int = 0
    rounded_away: int = 0
    constant: int = 0
    unjudged: int = 0
    by_custom_forward: int = 0
    wrong: tuple[WrongStatistic, ...] = ()
    maybe_wrong: tuple[WrongStatistic, ...] = ()
    places: tuple[Place | None, ...] = ()
    batches: tuple[BatchKey, ...] = ()
    written: str = ""
    written_at: Place | None = None

    def with_batch(self, batch: BatchKey | None) -> tuple[BatchKey, ...]:
        """Return the last batches, with one more if there is one."""
        return self.batches if batch is None else (*self.batches, batch)[-_MOST_BATCHES:]

    def with_wrong(self, wrong: list[WrongStatistic], *, is_guess: bool) -> Provenance:
        """Return a copy with more wrong statistics; only the first few are kept.

        Args:
            wrong: the statistics.
            is_guess: whether they are wrong only if a guess at the layer's batch is right.
        """
        if is_guess:
            return replace(self, maybe_wrong=(*self.maybe_wrong, *wrong)[:_MOST_WRONG])
        return replace(self, wrong=(*self.wrong, *wrong)[:_MOST_WRONG])

    @property
    def wants_place(self) -> bool:
        """Tell whether to record the place of the next update: it is among the first."""
        return len(self.places) < _MOST_PLACES


def statistics_of(layer: nn.Module) -> dict[str, Tensor]:
    """Return a layer's statistics and counter by name, without those that are None."""
    buffers = layer._buffers.items()
    return {name: each for name, each in buffers if name in BN_STATE and each is not None}


def _join(tensors: list[Tensor]) -> Tensor | None:
    """Copy the bytes of tensors into one; None if they are not plain memory on one device."""
    with suppress(*READ_ERRORS):
        if tensors and fit_in_buckets(tensors):
            return torch.cat([each.resolve_neg().reshape(-1).view(torch.uint8) for each in tensors])
    return None


@dataclass(frozen=True, slots=True)
class StatisticsSnapshot:
    """A layer's statistics at a moment; what they are is told once the copies are on the host.

    Args:
        tensors: the tensors themselves, by name.
        contents: copies of their bytes; None for a tensor that cannot be read.
        joined: the same copies as one tensor, those of the widest values first; None if they are
            kept one by one.
    """

    tensors: dict[str, Tensor]
    contents: dict[str, Content | None]
    joined: Tensor | None = None

    @classmethod
    def from_layer(cls, layer: nn.Module) -> StatisticsSnapshot:
        """Copy a layer's statistics, on their own device."""
        tensors = statistics_of(layer)
        named = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
        values = {name: on_host(tensor) for name, tensor in named}
        joined = _join(list(values.values()))
        if joined is None:
            return cls(tensors, {name: content_of(each) for name, each in values.items()})
        sizes = [each.nbytes for each in values.values()]
        return cls(tensors, _split(joined, dict(zip(values, sizes, strict=True))), joined)

    @property
    def pieces(self) -> list[Tensor]:
        """Return the copies, which may be on a device."""
        if self.joined is not None:
            return [self.joined]
        return [piece for content in self.contents.values() for piece in content or ()]

    def with_pieces(self, pieces: Iterable[Tensor]) -> StatisticsSnapshot:
        """Return this snapshot with other copies in place of `pieces`: those on the host."""
        rest = iter(pieces)
        if self.joined is not None:
            joined = next(rest)
            if joined is self.joined:
                return self
            return StatisticsSnapshot(self.tensors, _split(joined, self.sizes), joined)
        contents = {
            name: content and tuple(next(rest) for _ in content)
            for name, content in self.contents.items()
        }
        return StatisticsSnapshot(self.tensors, contents)

    @property
    def sizes(self) -> dict[str, int]:
        """Return how many bytes each tensor has, if they are joined."""
        return {name: content[0].numel() for name, content in self.contents.items() if content}

    @property
    def unread(self) -> StatisticsSnapshot:
        """Return a snapshot of the same tensors that could not be read."""
        return StatisticsSnapshot(self.tensors, dict.fromkeys(self.contents))

    @property
    def counter(self) -> int | None:
        """Return the counter's value; None if the layer has no counter, or it cannot be read."""
        content, tensor = self.contents.get(BN_STATE[2]), self.tensors.get(BN_STATE[2])
        if tensor is None or content is None:
            return None
        return int(content[0].view(tensor.dtype).item()) if content else 0

    def all_equal(self, name: str, value: float) -> bool:
        """Tell whether all values of a tensor equal this one, or it does not exist."""
        content = self.contents.get(name, ())
        if not content:
            return content is not None
        return bool((content[0].view(self.tensors[name].dtype) == value).all())

    @property
    def readable(self) -> bool:
        """Tell whether its values could be read."""
        return None not in self.contents.values()

    @property
    def is_new(self) -> bool:
        """Tell whether these are the statistics of a layer that is new, or reset."""
        return all(
            self.all_equal(name, value) for name, value in zip(BN_STATE, (0, 1, 0), strict=True)
        )

    def differs_from(self, other: StatisticsSnapshot) -> set[str]:
        """Return the names of the tensors whose bytes differ."""
        if self._has_all_of(other):
            return set()
        names = self.contents.keys() | other.contents.keys()
        return {name for name in names if not self._has(name, other)}

    def _has_all_of(self, other: StatisticsSnapshot) -> bool:
        """Tell whether all bytes are the same, if both have them joined."""
        mine, theirs = self.joined, other.joined
        if mine is None or theirs is None or self.contents.keys() != other.contents.keys():
            return False
        return mine.device == theirs.device and torch.equal(mine, theirs)

    def _has(self, name: str, other: StatisticsSnapshot) -> bool:
        mine, theirs = self.contents.get(name), other.contents.get(name)
        if mine is None or theirs is None:
            return mine is theirs
        return len(mine) == len(theirs) and all(
            a.device == b.device and a.equal(b) for a, b in zip(mine, theirs, strict=True)
        )

    @property
    def digest(self) -> bytes:
        """Return a digest of the bytes of all tensors."""
        contents = sorted(self.contents.items())
        return _digest(part for _, content in contents for part in content or ())

    def has_tensors(self, tensors: dict[str, Tensor]) -> bool:
        """Tell whether it is a snapshot of these very tensors."""
        return all(self.tensors.get(name) is tensors.get(name) for name in BN_STATE)


class StatisticsReader:
    """Copy a layer's statistics again and again: what kind of tensors they are is found out once.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._known: StatisticsSnapshot | None = None
        self._addresses: list[int] = []
        self._views: list[Tensor] = []

    def read(self) -> StatisticsSnapshot:
        """Copy the statistics as they are now, on their own device."""
        tensors, known = statistics_of(self.layer), self._known
        if known is not None and self._lie_as_before(tensors):
            joined = torch.cat(self._views)
            return StatisticsSnapshot(tensors, _split(joined, known.sizes), joined)
        snapshot = StatisticsSnapshot.from_layer(self.layer)
        self._known = None
        if snapshot.joined is not None:
            in_order = [tensors[name] for name in snapshot.contents]
            if not any(each.is_neg() for each in in_order):
                self._known = snapshot
                self._addresses = list(map(Tensor.data_ptr, in_order))
                self._views = [each.reshape(-1).view(torch.uint8) for each in in_order]
        return snapshot

    def _lie_as_before(self, tensors: dict[str, Tensor]) -> bool:
        """Tell whether these are the tensors that are known, with the same memory."""
        known = self._known
        if known is None or not known.has_tensors(tensors):
            return False
        return [tensors[name].data_ptr() for name in known.contents] == self._addresses


@dataclass(slots=True)
class StatisticsHistory:
    """The states that a layer's statistics went through, and what led to each.

    Args:
        origin: the state at the start.
        latest: the latest state, and what led to it.
        earlier: what led to the most recent of the states before, by their digests.
    """

    origin: StatisticsSnapshot
    latest: tuple[StatisticsSnapshot, Provenance]
    earlier: dict[bytes, Provenance] = field(default_factory=dict)

    @classmethod
    def begin(cls, origin: StatisticsSnapshot) -> StatisticsHistory:
        """Return a history that begins with this state."""
        return cls(origin, (origin, Provenance()))

    def find(self, state: StatisticsSnapshot) -> Provenance | None:
        """Return what led to a state; None if it was never seen."""
        for earlier, provenance in (self.latest, (self.origin, Provenance())):
            if not earlier.differs_from(state):
                return provenance
        if state.is_new and self.origin.is_new:
            return Provenance()
        return self.earlier.get(state.digest) if state.readable else None

    def add(self, state: StatisticsSnapshot, provenance: Provenance) -> None:
        """Add the present state, and what led to it."""
        before, led_to_before = self.latest
        if before.readable and state.differs_from(before):
            self.earlier.pop(before.digest, None)  # so that it becomes the most recent one
            self.earlier[before.digest] = led_to_before
            if len(self.earlier) > _MOST_STATES:
                del self.earlier[next(iter(self.earlier))]
        self.latest = state, provenance


def _split(joined: Tensor, sizes: dict[str, int]) -> dict[str, Content | None]:
    pieces = torch.split_with_sizes(joined, list(sizes.values()))
    return {name: (piece,) for name, piece in zip(sizes, pieces, strict=True)}


def _digest(parts: Iterable[Tensor]) -> bytes:
    """Return a digest of the bytes of tensors."""
    digest = blake2b(digest_size=16)
    for part in parts:
        on_cpu = part.cpu().contiguous()
        digest.update(string_at(on_cpu.data_ptr(), on_cpu.nbytes))
    return digest.digest()
