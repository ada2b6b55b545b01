"""Raise a guard's failure from a frame that is the test's own `def` line."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_bninvariants.errors import (
    GateError,
)
from pytest_bninvariants.plugin.markers import marks_of, spelled

if TYPE_CHECKING:
    from pytest_bninvariants.invariants.guard import Guard


RAISED_AT = "_raised_at"


_FAILURE = "__failure__"


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
    failure.__dict__[RAISED_AT] = code
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
