"""End a step: its guards judge, and what they find is raised, noted or reported later."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_bninvariants import guard_registry
from pytest_bninvariants.errors import DriftNote, GateError, InvariantBroken
from pytest_bninvariants.frames import drop_our_frames
from pytest_bninvariants.reporting.verdict_text import render

if TYPE_CHECKING:
    from pytest_bninvariants.invariants.guard import Guard


def conclude(
    guards: Sequence[Guard],
    error: BaseException | None,
    *,
    every: bool = False,
    unjudged: Sequence[str] = (),
) -> None:
    """End a step: stop its guards, let them judge, and raise for those that are broken.

    Args:
        guards: the guards around the step.
        error: the step's own exception; if there is one, guards raise nothing, and a note on it
            says what had changed.
        every: if the step raised, let also those guards judge whose verdict means little then, in
            case the test catches the exception outside of them.
        unjudged: why something else could not be judged, if the step did not raise.

    Raises:
        InvariantBroken: if an invariant is broken; the first broken guard says which subclass.
        GateError: if a guard could not judge.
    """
    __tracebackhide__ = True
    parts = [part for guard in guards for part in guard.parts]
    for part in reversed(parts):
        part.stop()
    if error is None:
        _raise_what_is_broken(parts, unjudged)
    elif _is_cancellation(error):
        _report_later(parts, error)
    else:
        drop_our_frames(error)
        if not isinstance(error, KeyboardInterrupt):
            _add_notes(parts, error, every=every and isinstance(error, Exception))


def _raise_what_is_broken(guards: Sequence[Guard], also: Sequence[str]) -> None:
    __tracebackhide__ = True
    broken: list[InvariantBroken] = []
    unjudged: list[str] = []
    for guard in guards:
        failure = _failure_of(guard)
        if isinstance(failure, InvariantBroken):
            broken.append(failure)
        elif failure is not None:
            unjudged.append(str(failure))
        else:
            guard.warn()
    joined = join_failures(broken, [*unjudged, *also])
    if joined is not None:
        raise joined


def _failure_of(guard: Guard, *, counts: bool = True) -> InvariantBroken | GateError | None:
    """Let a guard judge, and return its failure; None if the invariant holds.

    Args:
        guard: the guard.
        counts: whether the step came so far that the verdict means something.
    """
    try:
        verdict = guard.finish()
    except GateError as error:
        return error
    if counts:
        guard_registry.add_verdict(verdict)
    return None if verdict.holds else guard.failure(verdict)


def join_failures(
    broken: Sequence[InvariantBroken], unjudged: Sequence[str]
) -> InvariantBroken | GateError | None:
    """Return one failure for all, None for none.

    Args:
        broken: failures of broken guards.
        unjudged: what guards say that could not judge; if there are any, it is a GateError.
    """
    verdicts = [verdict for failure in broken for verdict in failure.verdicts]
    if unjudged:
        error = GateError("\n".join(unjudged))
        if verdicts:
            error.add_note(DriftNote(render(verdicts), verdicts))
        return error
    return type(broken[0])(*verdicts) if broken else None


def _is_cancellation(error: BaseException) -> bool:
    """Tell whether a generator or task was abandoned: then nobody receives an exception."""
    is_trios = type(error).__name__ == "Cancelled" and type(error).__module__.startswith("trio")
    return isinstance(error, (GeneratorExit, asyncio.CancelledError)) or is_trios


def _report_later(guards: Sequence[Guard], cancellation: BaseException) -> None:
    """Judge when a task or generator ends without anyone to receive its exception."""
    ended = "generator" if isinstance(cancellation, GeneratorExit) else "task"
    for guard in guards:
        failure = _failure_of(guard)
        if failure is not None:
            way = f"its block ended with a {ended} that was not run to its end"
            guard_registry.add_unraised(failure, way)


def _add_notes(guards: Sequence[Guard], error: BaseException, *, every: bool) -> None:
    for guard in guards:
        if not (every or guard.judges_halfway):
            guard.abandon(error)
            continue
        failure = _failure_of(guard, counts=guard.judges_halfway)
        if isinstance(failure, InvariantBroken):
            if guard.judges_halfway:
                text = f"\nwhen this was raised, frozen state had changed:\n{failure}"
                error.add_note(DriftNote(text, failure.verdicts))
            guard_registry.add_noted(failure, error)
