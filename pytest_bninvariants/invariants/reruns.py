"""Let a rerun of a test compare with the state before its first run.

A model that outlives a failed run has drifted already. Compared with its state at the start of the
rerun it looks frozen, and the failure would be reported as flaky.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from pytest_bninvariants.invariants.sides import Before
    from pytest_bninvariants.invariants.verdict import Cause


@dataclass(slots=True, kw_only=True)
class Slot:
    """One guard's place in the memory: the n-th of its spelling around its model in a run.

    Args:
        earlier: the snapshot of this guard in the last run, if that broke it.
        causes: why it was broken then.
        broken: the snapshot in this run, if that breaks it.
        model: the model, then; it is held, so that no other object takes its id.
        remember: keeps this slot in the memory.
    """

    earlier: Before | None = None
    causes: tuple[Cause, ...] = ()
    broken: Before | None = None
    model: nn.Module | None = None
    remember: Callable[[Slot], None] = lambda _: None

    def keep(self, model: nn.Module, before: Before, causes: tuple[Cause, ...]) -> None:
        """Keep the snapshot of a guard that is broken, for the next run."""
        self.model, self.broken, self.causes = model, before, causes
        self.remember(self)


@dataclass(slots=True)
class Memory:
    """The guards that a test's last run broke, and this one."""

    last: dict[tuple[int, str, int], Slot] = field(default_factory=dict)
    now: dict[tuple[int, str, int], Slot] = field(default_factory=dict)
    started: Counter[tuple[int, str]] = field(default_factory=Counter)

    def begin_run(self) -> None:
        """Begin another run of the test."""
        self.last, self.now = self.now, {}
        self.started.clear()

    def slot(self, model: nn.Module, guard: str) -> Slot:
        """Give a guard that starts its place."""
        self.started[id(model), guard] += 1
        key = id(model), guard, self.started[id(model), guard]
        last = self.last.get(key, Slot())
        return Slot(
            earlier=last.broken,
            causes=last.causes,
            remember=lambda slot: self.now.__setitem__(key, slot),
        )


active: Memory | None = None
"""The memory of the test that runs at the moment; None where nothing is to be remembered."""


def slot(model: nn.Module, guard: str) -> Slot:
    """Give a guard that starts its place in the memory, or one of its own where there is none."""
    return Slot() if active is None else active.slot(model, guard)


@contextmanager
def remembering(memory: Memory | None) -> Iterator[None]:
    """Use a memory, or none."""
    global active
    before, active = active, memory
    try:
        yield
    finally:
        active = before
