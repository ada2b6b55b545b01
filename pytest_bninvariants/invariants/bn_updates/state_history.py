"""What led to a state of a BN layer's statistics."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import c_char
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from torch import Tensor, nn

from pytest_bninvariants.batchnorm.reference import Statistics
from pytest_bninvariants.selection.bn_layers import BN_STATE
from pytest_bninvariants.snapshot.tensor_bytes import Content, as_bytes, content_of
from pytest_bninvariants.verdict import Place

_KNOWN, _PLACES, _BATCHES, _WRONG = 1024, 4, 8, 3  # kept of each: a long step must not grow memory


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongStatistic:
    """A statistic that an update made other than the reference says.

    Args:
        name: its name in the layer.
        update: which update it was, from 1.
        text: how far off it is, and where.
        fits: what would explain it, if anything does.
    """

    name: str
    update: int
    text: str
    fits: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchKey:
    """What tells a batch from others.

    Args:
        step: how many steps of an optimizer came before it: a batch may come again after one.
        digest: what stands for its statistics.
        count: how many values each channel has.
    """

    step: int
    digest: bytes
    count: int

    @classmethod
    def from_statistics(cls, step: int, statistics: Statistics, count: int) -> BatchKey:
        """Take note of a batch by its statistics, which are float64 and on the CPU."""
        return cls(step=step, digest=_digest(map(as_bytes, statistics)), count=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What led from the state at the start to a later one; updates that were undone are not in it.

    Args:
        updates: how many updates.
        recomputed: how many of them were made inside a backward.
        repeated: how many had a batch that had updated before, in the same optimizer's step.
        in_eval: how many were made while the layer's mode was eval.
        by_calls: how many were made by a call of torch's function for it, and not by a forward of
            the layer: the caller moves the counter before or after, if at all.
        uncounted: how many the counter did not count, which only a cumulative average needs.
        miscounted: how many it counted as more or less than one, or as none where the
            average needs the count.
        lost: how many a dtype that is too narrow has rounded away.
        unjudged: how many were not checked against the reference.
        unknown: how many of these were made by a custom forward.
        wrong: the first that were not what the reference says.
        unlike: the same for a layer that may differ on purpose.
        places: where the first of them were run.
        batches: the last batches.
        written: what wrote besides the updates: `loaded`, `reset` or `in-place`.
        written_at: where, if that was seen.
    """

    updates: int = 0
    recomputed: int = 0
    repeated: int = 0
    in_eval: int = 0
    by_calls: int = 0
    uncounted: int = 0
    miscounted: int = 0
    lost: int = 0
    unjudged: int = 0
    unknown: int = 0
    wrong: tuple[WrongStatistic, ...] = ()
    unlike: tuple[WrongStatistic, ...] = ()
    places: tuple[Place | None, ...] = ()
    batches: tuple[BatchKey, ...] = ()
    written: str = ""
    written_at: Place | None = None

    def with_batch(self, batch: BatchKey | None) -> tuple[BatchKey, ...]:
        """Return the last batches, with one more."""
        return self.batches if batch is None else (*self.batches, batch)[-_BATCHES:]

    def with_wrong(self, wrong: list[WrongStatistic], *, meant: bool) -> Provenance:
        """Return a copy with more wrong statistics, of which the first few are kept."""
        if meant:
            return replace(self, unlike=(*self.unlike, *wrong)[:_WRONG])
        return replace(self, wrong=(*self.wrong, *wrong)[:_WRONG])

    @property
    def wants_place(self) -> bool:
        """Tell whether the next update's place is among the first."""
        return len(self.places) < _PLACES


def statistics_of(layer: nn.Module) -> dict[str, Tensor]:
    """Return a layer's own statistics and counter, by name, as far as there are any."""
    buffers = layer._buffers.items()
    return {name: each for name, each in buffers if name in BN_STATE and each is not None}


@dataclass(frozen=True, slots=True)
class StatisticsSnapshot:
    """A layer's statistics at a moment.

    Args:
        tensors: the very tensors, by name.
        contents: copies of their bytes; None where they cannot be read.
    """

    tensors: dict[str, Tensor]
    contents: dict[str, Content | None]

    @classmethod
    def from_layer(cls, layer: nn.Module) -> StatisticsSnapshot:
        """Copy a layer's statistics."""
        tensors = statistics_of(layer)
        return cls(tensors, {name: content_of(tensor) for name, tensor in tensors.items()})

    @property
    def number(self) -> int | None:
        """Return the counter's value; None if the layer has no counter, or it cannot be read."""
        content, tensor = self.contents.get(BN_STATE[2]), self.tensors.get(BN_STATE[2])
        if tensor is None or content is None:
            return None
        return int(content[0].view(tensor.dtype).item()) if content else 0

    def holds(self, name: str, value: float) -> bool:
        """Tell whether all values of a tensor equal this one, or there is no such tensor."""
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
        """Tell whether a layer that is new, or reset, has these statistics."""
        return all(self.holds(name, value) for name, value in zip(BN_STATE, (0, 1, 0), strict=True))

    def differs_from(self, other: StatisticsSnapshot) -> set[str]:
        """Return the names of the tensors whose bytes differ."""
        names = self.contents.keys() | other.contents.keys()
        return {name for name in names if not self._has(name, other)}

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
        held = sorted(self.contents.items())
        return _digest(part for _, content in held for part in content or ())

    def is_of(self, tensors: dict[str, Tensor]) -> bool:
        """Tell whether these very tensors were copied."""
        return all(self.tensors.get(name) is tensors.get(name) for name in BN_STATE)


@dataclass(slots=True)
class StatisticsHistory:
    """States that a layer's statistics went through, the last of them, and what led to each.

    Args:
        origin: the state at the start.
        latest: the last state that was seen, and what led there.
        earlier: what led to the last of those before it, by their digests.
    """

    origin: StatisticsSnapshot
    latest: tuple[StatisticsSnapshot, Provenance]
    earlier: dict[bytes, Provenance] = field(default_factory=dict)

    @classmethod
    def begin(cls, origin: StatisticsSnapshot) -> StatisticsHistory:
        """Begin with the state at the start."""
        return cls(origin, (origin, Provenance()))

    def find(self, state: StatisticsSnapshot) -> Provenance | None:
        """Return what led to a state; None if it was never seen."""
        for known, provenance in (self.latest, (self.origin, Provenance())):
            if not known.differs_from(state):
                return provenance
        if state.is_new and self.origin.is_new:
            return Provenance()
        return self.earlier.get(state.digest) if state.readable else None

    def add(self, state: StatisticsSnapshot, provenance: Provenance) -> None:
        """Take in the state that there is now."""
        before, led_there = self.latest
        if before.readable and state.differs_from(before):
            self.earlier.pop(before.digest, None)  # so that it is the last
            self.earlier[before.digest] = led_there
            if len(self.earlier) > _KNOWN:
                del self.earlier[next(iter(self.earlier))]
        self.latest = state, provenance


def _digest(parts: Iterable[Tensor]) -> bytes:
    """Return a digest of the bytes of flat uint8 tensors."""
    made = blake2b(digest_size=16)
    for part in parts:
        on_cpu = part.cpu().contiguous()
        made.update((c_char * on_cpu.numel()).from_address(on_cpu.data_ptr()))
    return made.digest()
