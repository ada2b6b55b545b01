"""Fail a test that looks guarded but was not: a guard never entered or left, a marker too late."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import pytest

from pytest_bninvariants import guard_registry
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.plugin.markers import as_written, guard_marks
from pytest_bninvariants.plugin.outcomes.raise_at_test import raise_at


def fail_unless_judged(item: pytest.Item, marks: list[pytest.Mark]) -> None:
    """Fail a test that has passed, if some of its guards have a verdict that nobody received.

    Args:
        item: the test.
        marks: the markers that requested a guard before its call.

    Raises:
        GateError: if there are such guards, or a marker was added too late.
    """
    __tracebackhide__ = True
    complaints = list(dict.fromkeys(guard_registry.complaints.values()))
    in_time = {as_written(mark) for mark in marks}
    complaints += [
        f"{as_written(mark)} was added while the test ran, too late to guard it"
        for mark in guard_marks(item)
        if as_written(mark) not in in_time
    ]
    if complaints:
        guard_registry.complaints.clear()
        (getattr(item, "_excinfo", None) or []).clear()  # such as unittest's unexpected success
        _fail(item, complaints)


def fail_if_left_open(item: pytest.Item, before: set[int]) -> None:
    """Fail a test that entered guards and never left them, once its fixtures have ended.

    Args:
        item: the test.
        before: numbers of the guards that earlier tests or fixtures had opened.

    Raises:
        GateError: if the test left guards open.
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
