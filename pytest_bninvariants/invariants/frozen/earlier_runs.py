"""Let a rerun of a test compare with the state before its first run.

A model that outlives a failed run has drifted already. Compared with its state at the start of the
rerun it would look frozen, and pytest would report the failure as flaky. If the model is not as the
failed run left it, it was made anew, and the rerun compares it with its own start.

Tensors whose change only fingerprints showed are remembered as well. The next such guard keeps
their bytes, so that a rerun can tell how far their values moved: hypothesis reruns a failing
example, and `--bn-trace` a failing test.
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
        model: its model; the reference keeps its id from being reused.
        before: the snapshot that the guard compared with.
        changes: the changes that it found.
        causes: why.
    """

    model: nn.Module
    before: StateBefore
    changes: tuple[Change, ...]
    causes: tuple[Cause, ...]

    @property
    def lasting_changes(self) -> frozenset[Change]:
        """Return the changes that a model still shows when the next run begins."""
        return frozenset(self.changes).difference(self.heard)

    @property
    def heard(self) -> tuple[Change, ...]:
        """Return what was heard in the run, and left no trace in the model."""
        return tuple(each for each in self.changes if each.kind == "batch-statistics")

    def is_as_left(self, now: StateBefore) -> bool:
        """Tell whether the model still differs from the snapshot as it did when the run ended."""
        changes = self.before.changes(now.selection)
        return set(changes) == {change for change in self.changes if change.of_tensor}

    def causes_of(self, changes: Iterable[Change]) -> tuple[Cause, ...]:
        """Return the causes of some of its changes, worded for the verdict of a later run."""
        names = {change.name for change in changes}
        return tuple(
            replace(cause, why=f"{cause.why}; that was in an earlier run of this test")
            for cause in self.causes
            if names.intersection(cause.tensors or cause.layers)
        )


_Key = tuple[int, str, int]
"""A guard of a run: its model's id, its spelling, and its number among those of this spelling."""


@dataclass(frozen=True, slots=True)
class GuardSlot:
    """Where a guard of one run finds what the last run broke, and leaves what this run breaks.

    Args:
        key: the guard.
        last: the same guard of the last run, if that broke it.
        broken: the guards that this run broke; a guard that holds leaves nothing there.
    """

    key: _Key
    last: BrokenGuard | None
    broken: dict[_Key, BrokenGuard]

    def remember(self, guard: BrokenGuard) -> None:
        """Let the next run know that this run broke the guard."""
        self.broken[self.key] = guard


@dataclass(slots=True)
class EarlierRuns:
    """The guards that the last run of a test broke, and those that its current run broke.

    Args:
        last: the guards that the last run broke.
        broken: the guards that the current run broke.
        started: how many guards of a spelling the current run has started around a model.
    """

    last: dict[_Key, BrokenGuard] = field(default_factory=dict)
    broken: dict[_Key, BrokenGuard] = field(default_factory=dict)
    started: Counter[tuple[int, str]] = field(default_factory=Counter)

    def begin_run(self) -> None:
        """Begin another run of the test."""
        self.last, self.broken = self.broken, {}
        self.started.clear()

    def slot_for(self, model: nn.Module, guard: str) -> GuardSlot:
        """Return the slot of a guard that starts."""
        self.started[id(model), guard] += 1
        key = id(model), guard, self.started[id(model), guard]
        return GuardSlot(key, self.last.get(key), self.broken)


active: EarlierRuns | None = None
"""The runs of the test that is running; None if no plugin can run it again."""


def slot_for(model: nn.Module, guard: str) -> GuardSlot | None:
    """Return the slot of a guard that starts; None if no earlier runs are remembered."""
    return None if active is None else active.slot_for(model, guard)


@contextmanager
def remembering(runs: EarlierRuns | None) -> Iterator[None]:
    """Make these the active runs for a while; with None, guards remember nothing."""
    global active
    before, active = active, runs
    try:
        yield
    finally:
        active = before


_suspects: dict[tuple[str, str], frozenset[str]] = {}
"""By class of the model and spelling of the guard: keys of tensors to keep exactly next time."""


def to_keep_exactly(model: nn.Module, guard: str) -> Collection[str]:
    """Return the keys of tensors whose bytes a guard should keep, as far as the budget allows.

    Args:
        model: its model.
        guard: the guard as its user wrote it.
    """
    return _suspects.get(_kind(model, guard), ())


def remember_inexact(
    model: nn.Module, guard: str, kept: Mapping[str, KeptTensor], changes: Iterable[Change]
) -> None:
    """Remember which of a guard's changes only fingerprints showed.

    Args:
        model: its model.
        guard: the guard as its user wrote it.
        kept: what it kept, by key.
        changes: the changes that it found.
    """
    inexact = {change.name for change in changes if not change.exact}
    keys = frozenset(key for key, each in kept.items() if each.watched.name in inexact)
    if keys:
        _suspects[_kind(model, guard)] = keys


def _kind(model: nn.Module, guard: str) -> tuple[str, str]:
    return f"{type(model).__module__}.{type(model).__qualname__}", guard
