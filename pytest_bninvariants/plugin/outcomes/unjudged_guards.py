"""Fail a test that looks guarded and was not: a guard never entered or left, a marker too late."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import pytest

from pytest_bninvariants import guard_registry
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.plugin.markers import as_written, guard_marks
from pytest_bninvariants.plugin.outcomes.raise_at_test import raise_at


def fail_unless_judged(item: pytest.Item, marks: list[pytest.Mark]) -> None:
    """Fail a test that has passed but made guards that reported to nobody.

    Args:
        item: the test.
        marks: its markers that ask for a guard, from before its call.

    Raises:
        GateError: there are such guards, or a marker was added too late.
    """
    __tracebackhide__ = True
    complaints = list(dict.fromkeys(guard_registry.complaints.values()))
    known = {as_written(mark) for mark in marks}
    complaints += [
        f"{as_written(mark)} was added while the test ran, too late to guard it"
        for mark in guard_marks(item)
        if as_written(mark) not in known
    ]
    if complaints:
        guard_registry.complaints.clear()
        (getattr(item, "_excinfo", None) or []).clear()  # unittest's unexpected success, say
        _fail(item, complaints)


def fail_if_left_open(item: pytest.Item, before: set[int]) -> None:
    """Fail a test that entered guards and never left them, once its fixtures have ended.

    Args:
        item: the test.
        before: numbers of the guards that were open before it, of earlier tests or of fixtures.

    Raises:
        GateError: it left some open.
    """
    __tracebackhide__ = True
    open_now = guard_registry.open_guards.items()
    left_open = [guard for number, guard in open_now if number not in before]
    for guard in left_open:
        guard.stop()
    if left_open:
        _fail(item, dict.fromkeys(guard.left_open for guard in left_open))


def _fail(item: pytest.Item, complaints: Iterable[str]) -> NoReturn:
    __tracebackhide__ = True
    raise_at(getattr(item, "obj", None) or item.runtest, GateError("; ".join(complaints)), {})
