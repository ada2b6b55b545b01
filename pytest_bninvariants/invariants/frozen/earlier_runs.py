"""Let a rerun of a test compare with the state before its first run.

A model that outlives a failed run has drifted already. Compared with its state at the start of the
rerun it looks frozen, and the failure would be reported as flaky. Where it is not as that run left
it, somebody made it anew, and it is compared with itself.

What only fingerprints told of is remembered as well: the next such guard keeps the bytes of these
tensors, so that a rerun, as hypothesis does with a failing example and `--bn-trace` with a test,
tells how far the values moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
    from pytest_bninvariants.state_change.before_after import StateBefore
    from pytest_bninvariants.verdict import Cause, Change

NOTE = "compared with the state before an earlier run of this test, which the model has outlived"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenGuard:
    """A guard that a run broke.

    Args:
        model: its model; it is held, so that no other object takes its id.
        before: the snapshot that it compared with.
        changes: what it found.
        causes: why.
    """

    model: nn.Module
    before: StateBefore
    changes: tuple[Change, ...]
    causes: tuple[Cause, ...]

    @property
    def known(self) -> frozenset[Change]:
        """Return the changes that are there when the next run begins, if the model is as left."""
        return frozenset(each for each in self.changes if each.kind != "batch-statistics")

    def is_as_left(self, now: StateBefore) -> bool:
        """Tell whether what is watched differs from the snapshot as it did when the run ended."""
        found = self.before.changes(now.selection)
        return set(found) == {change for change in self.changes if change.of_tensor}

    def causes_of(self, changes: Iterable[Change]) -> tuple[Cause, ...]:
        """Return the causes of some of its changes, as a later run tells them."""
        names = {change.name for change in changes}
        return tuple(
            replace(cause, why=f"{cause.why}; that was in an earlier run of this test")
            for cause in self.causes
            if names.intersection(cause.tensors or cause.layers)
        )


@dataclass(slots=True)
class GuardSlot:
    """One guard's place among those of a run: the n-th of its spelling around its model.

    Args:
        last: what the last run broke there, if it did.
        broken: what this run broke there, if it did.
    """

    last: BrokenGuard | None = None
    broken: BrokenGuard | None = None


_Key = tuple[int, str, int]


@dataclass(slots=True)
class EarlierRuns:
    """The guards that a test's last run broke, and those of the run that goes on.

    Args:
        last: what the last run broke.
        slots: the places of this run's guards.
        started: how many guards of a spelling this run has started around a model.
    """

    last: dict[_Key, BrokenGuard] = field(default_factory=dict)
    slots: dict[_Key, GuardSlot] = field(default_factory=dict)
    started: Counter[tuple[int, str]] = field(default_factory=Counter)

    def begin_run(self) -> None:
        """Begin another run of the test."""
        self.last = {key: slot.broken for key, slot in self.slots.items() if slot.broken}
        self.slots = {}
        self.started.clear()

    def add_slot(self, model: nn.Module, guard: str) -> GuardSlot:
        """Give a guard that starts its place."""
        self.started[id(model), guard] += 1
        key = id(model), guard, self.started[id(model), guard]
        self.slots[key] = GuardSlot(self.last.get(key))
        return self.slots[key]


active: EarlierRuns | None = None
"""The earlier runs of the test that runs at the moment; None where nothing is to be remembered."""


def slot_for(model: nn.Module, guard: str) -> GuardSlot:
    """Give a guard that starts its place among those of the run, or one that nothing remembers."""
    return GuardSlot() if active is None else active.add_slot(model, guard)


@contextmanager
def remembering(runs: EarlierRuns | None) -> Iterator[None]:
    """Remember in these runs what guards break, or nowhere."""
    global active
    before, active = active, runs
    try:
        yield
    finally:
        active = before


_suspects: dict[tuple[str, str], frozenset[str]] = {}


def to_keep_exactly(model: nn.Module, guard: str) -> Collection[str]:
    """Return the keys of tensors whose bytes a guard had better keep.

    Args:
        model: its model.
        guard: the guard as its user wrote it.
    """
    return _suspects.get(_kind(model, guard), ())


def remember_inexact(
    model: nn.Module, guard: str, kept: Mapping[str, KeptTensor], changes: Iterable[Change]
) -> None:
    """Remember which of a guard's changes only fingerprints tell.

    Args:
        model: its model.
        guard: the guard as its user wrote it.
        kept: what it kept, by key.
        changes: what it found.
    """
    changed = {change.name for change in changes if not change.exact}
    found = [key for key, each in kept.items() if each.watched.name in changed]
    if found:
        _suspects[_kind(model, guard)] = frozenset(found)


def _kind(model: nn.Module, guard: str) -> tuple[str, str]:
    return f"{type(model).__module__}.{type(model).__qualname__}", guard
