"""End a step: its guards judge, and what they find is raised, noted or reported later."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_bninvariants.errors import DriftNote, GateError
from pytest_bninvariants.frames import drop_our_frames
from pytest_bninvariants.reporting.verdict_text import headline, render

if TYPE_CHECKING:
    from pytest_bninvariants.invariants.guard import Guard
    from pytest_bninvariants.verdict import Verdict


def conclude(guards: Sequence[Guard], error: BaseException | None) -> None:
    """End a step: stop its guards, let them judge, and raise for those that are broken.

    Args:
        guards: the guards around the step.
        error: the step's own exception; if there is one, guards raise nothing, and a note on it
            says what had changed.

    Raises:
        InvariantBroken: if an invariant is broken; the first broken guard says which subclass.
        GateError: if a guard could not judge.
    """
    __tracebackhide__ = True
    parts = [part for guard in guards for part in guard.parts]
    for part in reversed(parts):
        part.stop()
    if error is None:
        _raise_what_is_broken(parts)
    elif _is_cancellation(error):
        _report_later(parts, error)
    else:
        drop_our_frames(error)
        if not isinstance(error, KeyboardInterrupt):
            _add_notes(parts, error)


def _raise_what_is_broken(guards: Sequence[Guard]) -> None:
    __tracebackhide__ = True
    broken: list[Guard] = []
    verdicts: list[Verdict] = []
    unjudged: list[str] = []
    for guard in guards:
        try:
            verdict = guard.finish()
        except GateError as error:
            unjudged.append(str(error))
            continue
        if verdict.holds:
            guard.warn()
        else:
            broken.append(guard)
            verdicts.append(verdict)
    if unjudged:
        failure = GateError("\n".join(unjudged))
        if verdicts:
            failure.add_note(DriftNote(render(verdicts), verdicts))
        raise failure
    if broken:
        raise broken[0].failure(*verdicts)


def _is_cancellation(error: BaseException) -> bool:
    """Tell whether a generator or task was abandoned: then nobody receives an exception."""
    is_trios = type(error).__name__ == "Cancelled" and type(error).__module__.startswith("trio")
    return isinstance(error, (GeneratorExit, asyncio.CancelledError)) or is_trios


def _report_later(guards: Sequence[Guard], cancellation: BaseException) -> None:
    """Judge when a task or generator ends without anyone to receive its exception."""
    ended = "generator" if isinstance(cancellation, GeneratorExit) else "task"
    for guard in guards:
        try:
            verdict = guard.finish()
        except GateError as error:
            finding = str(error)
        else:
            finding = "" if verdict.holds else headline(verdict)
        if finding:
            guard.report_later(
                f"ended with a {ended} that was not run to its end, and found: {finding}"
            )


def _add_notes(guards: Sequence[Guard], error: BaseException) -> None:
    for guard in guards:
        if not guard.judges_halfway:
            continue
        try:
            verdict = guard.finish()
        except GateError:
            continue
        if not verdict.holds:
            text = f"\nwhen this was raised, frozen state had changed:\n{render([verdict])}"
            error.add_note(DriftNote(text, [verdict]))
