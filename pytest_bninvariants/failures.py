"""Raise a guard's failure at the test it belongs to, and clean what pytest reports of it."""

from __future__ import annotations

import inspect
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_bninvariants.errors import (
    DriftNote,
    FrozenStateChanged,
    GateError,
    InvariantBroken,
    LawBroken,
)
from pytest_bninvariants.invariants.tracebacks import drop_our_frames
from pytest_bninvariants.invariants.verdict import Verdict
from pytest_bninvariants.markers import marks_of, spelled
from pytest_bninvariants.reporting.text import render

if TYPE_CHECKING:
    from pytest_bninvariants.invariants.guards import Guard


_PACKAGE = str(Path(__file__).parent)
_OURS = (InvariantBroken, GateError, LawBroken)
_ENGINES = (
    "invariants.guards",
    "invariants.audit",
    "invariants.accumulation",
    "batchnorm.conform",
)
_RAISED_AT = "_raised_at"
_FAILURE = "__failure__"
_EXPLANATION = "Explanation:"  # of hypothesis


def raise_at(
    function: Callable[..., Any], failure: BaseException, values: Mapping[str, Any]
) -> NoReturn:
    """Raise a failure from a frame that looks like a test's own `def` line.

    So pytest shows the test and nothing of ours, and `--pdb` stops there with the test's values.

    Args:
        function: the test.
        failure: what to raise.
        values: what that frame's local variables are.
    """
    test = inspect.unwrap(getattr(function, "__func__", function))
    code = _code_at(test)
    failure.__dict__[_RAISED_AT] = code
    failure.__traceback__ = failure.__context__ = None
    exec(code, {**getattr(test, "__globals__", {}), _FAILURE: failure}, dict(values))
    raise AssertionError("the code above raises")


def line_of(function: Callable[..., Any]) -> tuple[str, int]:
    """Return the file of a test, and the line of its `def`."""
    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
    if code is None:  # a callable object
        return "<test>", 1
    return code.co_filename, code.co_firstlineno + _lines_to_def(code)


def _code_at(function: Callable[..., Any]) -> CodeType:
    test = getattr(function, "__code__", None)
    if test is None:  # a callable object
        return compile(f"raise {_FAILURE}", "<test>", "exec")
    first, down = test.co_firstlineno, _lines_to_def(test)
    # replacing the first line number moves all others with it, so count from there
    code = compile("\n" * down + f"raise {_FAILURE}", test.co_filename, "exec")
    return code.replace(co_name=test.co_name, co_qualname=test.co_qualname, co_firstlineno=first)


def _lines_to_def(code: CodeType) -> int:
    """Count the lines of decorators between a function's first line and its `def`."""
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    for number, line in enumerate(lines):
        if line.lstrip().startswith(("def ", "async def ")):
            return number
    return 0


def raise_what_was_missed(
    item: pytest.Item, marks: list[pytest.Mark], pending: dict[int, str]
) -> None:
    """Fail a test that looks guarded and was not.

    Args:
        item: the test, which has passed.
        marks: its markers that ask for a guard, from before its call.
        pending: what is said of guards of which nobody has heard.

    Raises:
        GateError: there are such guards, or a marker has come that was too late.
    """
    __tracebackhide__ = True
    told = list(dict.fromkeys(pending.values()))
    late = [mark for mark in marks_of(item) if spelled(mark) not in map(spelled, marks)]
    told += [f"{spelled(mark)} was added while the test ran, too late to guard it" for mark in late]
    if told:
        pending.clear()
        (getattr(item, "_excinfo", None) or []).clear()  # unittest's unexpected success, say
        _fail(item, told)


def raise_what_was_left_open(
    item: pytest.Item, entered: dict[int, Guard], before: set[int]
) -> None:
    """Fail a test that entered guards which nobody left, once its fixtures have ended.

    Args:
        item: the test.
        entered: guards that have not ended.
        before: which of them are of earlier tests or of fixtures.

    Raises:
        GateError: there are others.
    """
    __tracebackhide__ = True
    left = [guard for number, guard in entered.items() if number not in before]
    for guard in left:
        guard.stop()
    if left:
        _fail(item, dict.fromkeys(guard.left_open for guard in left))


def _fail(item: pytest.Item, told: Iterable[str]) -> NoReturn:
    __tracebackhide__ = True
    raise_at(getattr(item, "obj", None) or item.runtest, GateError("; ".join(told)), {})


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
    if not any(f"pytest_bninvariants.{engine}" in sys.modules for engine in _ENGINES):
        return excinfo  # nothing has been guarded so far
    failures = [error for error in _with_parts(excinfo.value) if isinstance(error, _OURS)]
    drop_our_frames(excinfo.value)
    for failure in failures:
        if verbose and isinstance(failure, InvariantBroken):
            failure.args = (render(failure.verdicts, verbose=True),)
        _drop_notes_about_us(failure)
        code = getattr(failure, _RAISED_AT, None)
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
    if not any(_PACKAGE in line for line in notes) or _EXPLANATION not in notes:
        return
    start = notes.index(_EXPLANATION)
    kept = [line for line in notes[start:] if _PACKAGE not in line]
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
