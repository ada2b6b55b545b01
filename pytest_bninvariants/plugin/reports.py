"""Clean what pytest reports of a guard's failure, and find the verdicts in it."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any

import pytest

from pytest_bninvariants.errors import (
    DriftNote,
    FrozenStateChanged,
    GateError,
    InvariantBroken,
    LawBroken,
)
from pytest_bninvariants.frames import PACKAGE, drop_our_frames
from pytest_bninvariants.plugin.raise_at_test import RAISED_AT
from pytest_bninvariants.verdict import Verdict

_OURS = (InvariantBroken, GateError, LawBroken)
_EXPLANATION = "Explanation:"  # of hypothesis


def clean(item: pytest.Item, call: pytest.CallInfo[None], *, verbose: bool) -> None:
    """Make what a call raised presentable, before pytest turns it into a report."""
    if call.excinfo is not None:
        call.excinfo = _cleaned(call.excinfo, verbose=verbose)
    of_unittest = getattr(item, "_excinfo", None)  # pytest reports these in place of call.excinfo
    if of_unittest:
        of_unittest[:] = [_cleaned(excinfo, verbose=verbose) for excinfo in of_unittest]


def _cleaned(
    excinfo: pytest.ExceptionInfo[BaseException], *, verbose: bool
) -> pytest.ExceptionInfo[BaseException]:
    failures = [error for error in _with_parts(excinfo.value) if isinstance(error, _OURS)]
    drop_our_frames(excinfo.value)
    for failure in failures:
        if verbose and isinstance(failure, InvariantBroken):
            failure.unfold()
        _drop_notes_about_us(failure)
        code = getattr(failure, RAISED_AT, None)
        if code is not None:
            failure.__traceback__ = _from_frame(failure.__traceback__, code)
    _drop_notes_about_us(excinfo.value)
    return pytest.ExceptionInfo.from_exception(excinfo.value)


def _from_frame(traceback: TracebackType | None, code: CodeType) -> TracebackType | None:
    current = traceback
    while current is not None and current.tb_frame.f_code is not code:
        current = current.tb_next
    return current or traceback


def _with_parts(error: BaseException) -> Iterator[BaseException]:
    yield error
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _with_parts(part)


def _drop_notes_about_us(error: BaseException) -> None:
    """Drop our lines from hypothesis's explanation, which lists what only failing examples run.

    It is the end of the notes: a title, a sentence, files with lines, and how many more there are.
    """
    notes = "\n".join(getattr(error, "__notes__", ())).split("\n")
    if not any(PACKAGE in line for line in notes) or _EXPLANATION not in notes:
        return
    start = notes.index(_EXPLANATION)
    kept = [line for line in notes[start:] if PACKAGE not in line]
    told = any(".py:" in line for line in kept)
    error.__notes__ = notes[:start] + (kept if told else [])


def gate_error_in(error: BaseException | None) -> GateError | None:
    """Return the gate error that an exception is, or contains."""
    parts = () if error is None else _with_parts(error)
    return next((part for part in parts if isinstance(part, GateError)), None)


def verdicts_in(error: BaseException | None) -> tuple[Verdict, ...]:
    """Return the verdicts that an exception gives, itself or in a note."""
    parts = () if error is None else _with_parts(error)
    told = (each for part in parts for each in (part, *getattr(part, "__notes__", ())))
    return tuple(
        verdict
        for each in told
        if isinstance(each, InvariantBroken | DriftNote)
        for verdict in each.verdicts
    )


def insist_on_gate_errors(item: Any) -> None:
    """Have unittest's expectedFailure take a gate error for an error.

    Args:
        item: the pytest item of a TestCase's method, which is unittest's result object too.
    """
    expected, error = item.addExpectedFailure, item.addError

    def add(testcase: Any, excinfo: Any, *args: Any) -> None:
        (expected if gate_error_in(excinfo[1]) is None else error)(testcase, excinfo, *args)

    item.addExpectedFailure = add


def insist(item: pytest.Item, report: pytest.TestReport, error: GateError) -> None:
    """Report a gate error as failed, whatever xfail or expectedFailure made of it."""
    if report.failed and not hasattr(report, "wasxfail"):
        return
    report.outcome = "failed"
    if hasattr(report, "wasxfail"):
        del report.wasxfail
    excinfo = pytest.ExceptionInfo.from_exception(error)
    report.longrepr = item.repr_failure(excinfo)


def strip_prefix(report: pytest.TestReport) -> None:
    """Begin with the news, not with the exception's name; the summary has the headline alone.

    On CI pytest prints a summary's message whole, which would give the verdict a second time.
    """
    longrepr: Any = report.longrepr
    crash = getattr(longrepr, "reprcrash", None)
    for kind in (FrozenStateChanged, *_OURS):
        prefix = f"{kind.__module__}.{kind.__qualname__}: "
        if crash is not None and crash.message.startswith(prefix):
            crash.message = crash.message.removeprefix(prefix).partition("\n")[0]
            for entry in longrepr.reprtraceback.reprentries:
                entry.lines = [_without(line, prefix) for line in entry.lines]


def _without(line: str, prefix: str) -> str:
    mark, _, rest = line.partition(prefix)
    return f"{mark}{rest}" if rest and mark.strip() == "E" else line
