"""The states that a BN layer's statistics went through, and what led to each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import StatisticsSnapshot
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


class BatchKey(NamedTuple):
    """What identifies a batch.

    Args:
        step: how many optimizer steps came before it: a batch may be used again after one.
        digest: the digest of its statistics.
        values: how many values each channel has.
    """

    step: int
    digest: bytes
    values: int


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
