"""Make a test's exception presentable, and find the verdicts in it."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, TracebackType

import pytest

from pytest_bninvariants.errors import (
    DriftNote,
    GateError,
    InvariantBroken,
    LawBroken,
)
from pytest_bninvariants.frames import PACKAGE, drop_our_frames
from pytest_bninvariants.plugin.outcomes.raise_at_test import RAISED_AT
from pytest_bninvariants.verdict import Verdict

OUR_ERRORS = (InvariantBroken, GateError, LawBroken)
_EXPLANATION = "Explanation:"  # the title that hypothesis gives it


def make_presentable(item: pytest.Item, call: pytest.CallInfo[None], *, verbose: bool) -> None:
    """Make the exception of a call presentable, before pytest turns it into a report."""
    if call.excinfo is not None:
        call.excinfo = _presentable(call.excinfo, verbose=verbose)
    excinfos = getattr(item, "_excinfo", None)  # for a TestCase pytest reports these instead
    if excinfos:
        excinfos[:] = [_presentable(excinfo, verbose=verbose) for excinfo in excinfos]


def _presentable(
    excinfo: pytest.ExceptionInfo[BaseException], *, verbose: bool
) -> pytest.ExceptionInfo[BaseException]:
    parts = [*_and_its_parts(excinfo.value)]
    drop_our_frames(excinfo.value)
    for part in parts:
        drop_notes_about_us(part)
    for failure in (part for part in parts if isinstance(part, OUR_ERRORS)):
        if verbose and isinstance(failure, InvariantBroken):
            failure.unfold()
        code = getattr(failure, RAISED_AT, None)
        if code is not None:
            failure.__traceback__ = _from_code(failure.__traceback__, code)
    if excinfo.value.__traceback__ is None:  # Twisted removes it
        return excinfo
    return pytest.ExceptionInfo.from_exception(excinfo.value)


def _from_code(traceback: TracebackType | None, code: CodeType) -> TracebackType | None:
    current = traceback
    while current is not None and current.tb_frame.f_code is not code:
        current = current.tb_next
    return current or traceback


def _and_its_parts(error: BaseException) -> Iterator[BaseException]:
    yield error
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _and_its_parts(part)


def drop_notes_about_us(error: BaseException) -> None:
    """Drop our lines from hypothesis's explanation, which lists lines that only failures run.

    The explanation ends the notes: a title, a sentence, files with lines, and how many are left
    out.
    """
    notes = "\n".join(_notes_of(error)).split("\n")
    if not any(PACKAGE in line for line in notes) or _EXPLANATION not in notes:
        return
    start = notes.index(_EXPLANATION)
    kept = [line for line in notes[start:] if PACKAGE not in line]
    names_lines = any(".py:" in line for line in kept)
    error.__notes__ = notes[:start] + (kept if names_lines else [])


def _notes_of(error: BaseException) -> list[str]:
    """Return an exception's notes; a user's code may have put anything in their place."""
    notes = getattr(error, "__notes__", None)
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def gate_error_in(error: BaseException | None) -> GateError | None:
    """Return the gate error that an exception is, or contains."""
    parts = () if error is None else _and_its_parts(error)
    return next((part for part in parts if isinstance(part, GateError)), None)


def verdicts_in(error: BaseException | None) -> tuple[Verdict, ...]:
    """Return the verdicts in an exception and in its notes."""
    parts = () if error is None else _and_its_parts(error)
    sources = (each for part in parts for each in (part, *_notes_of(part)))
    return tuple(
        verdict
        for each in sources
        if isinstance(each, InvariantBroken | DriftNote)
        for verdict in each.verdicts
    )
