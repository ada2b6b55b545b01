"""Raise a guard's failure from a frame that looks like the test's `def` line."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, NoReturn

RAISED_AT = "_raised_at"
"""The attribute of a failure that holds the code of the frame it was raised from."""

_FAILURE = "__failure__"


def raise_at(
    function: Callable[..., Any], failure: BaseException, values: Mapping[str, Any]
) -> NoReturn:
    """Raise a failure from a frame that looks like a test's `def` line.

    So pytest shows the test and none of our frames, and `--pdb` stops there with the test's values.

    Args:
        function: the test.
        failure: the exception to raise.
        values: the local variables of that frame.
    """
    test = _unwrapped(function)
    code = _code_at(test)
    failure.__dict__[RAISED_AT] = code
    failure.__traceback__ = failure.__context__ = None
    exec(code, {**getattr(test, "__globals__", {}), _FAILURE: failure}, dict(values))
    raise AssertionError("the code above raises")


def function_of(item: Any) -> Any:
    """Return the function of a pytest item, or what stands for it in items of other plugins."""
    return getattr(item, "obj", None) or item.runtest


def line_of(function: Callable[..., Any]) -> tuple[str, int]:
    """Return the file of a test, and the line of its `def`."""
    code = code_of(function)
    if code is None:
        return "<test>", 1
    return code.co_filename, code.co_firstlineno + _lines_to_def(code)


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """Return the code of a test; None if it is a callable object."""
    code: CodeType | None = getattr(_unwrapped(function), "__code__", None)
    return code


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    unwrapped: Callable[..., Any] = inspect.unwrap(getattr(function, "__func__", function))
    return unwrapped


def _code_at(function: Callable[..., Any]) -> CodeType:
    test = code_of(function)
    if test is None:
        return compile(f"raise {_FAILURE}", "<test>", "exec")
    # replacing the first line number moves all others with it, so the code counts from there
    code = compile("\n" * _lines_to_def(test) + f"raise {_FAILURE}", test.co_filename, "exec")
    return code.replace(
        co_name=test.co_name,
        co_qualname=test.co_qualname,
        co_firstlineno=test.co_firstlineno,
    )


def _lines_to_def(code: CodeType) -> int:
    """Count the lines of decorators between a function's first line and its `def`."""
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    for number, line in enumerate(lines):
        if line.lstrip().startswith(("def ", "async def ")):
            return number
    return 0
