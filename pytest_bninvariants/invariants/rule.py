"""What a rule of the diagnosis is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_bninvariants.invariants.evidence import Evidence
from pytest_bninvariants.invariants.verdict import CauseName, Place


def _nowhere(_: Evidence) -> Place | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A cause, when it applies to a change, and what it says of all changes of one event.

    Args:
        cause: its name.
        applies: tells whether it explains a change.
        explain: says why, and the fix.
        place: where it happened, if that was seen.
        did: what was done there, up to the call.
    """

    cause: CauseName
    applies: Callable[[Evidence], bool]
    explain: Callable[[list[Evidence]], tuple[str, str]]
    place: Callable[[Evidence], Place | None] = _nowhere
    did: str = ""

    def event(self, evidence: Evidence) -> object:
        """Return what tells the event apart from others that the rule explains, too."""
        stepped = evidence.handled.stepped
        optimizer = None if stepped is None else (stepped.optimizer, stepped.group)
        return self.place(evidence), optimizer
