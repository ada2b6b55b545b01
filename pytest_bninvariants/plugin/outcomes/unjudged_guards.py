"""Fail a test that looks guarded but was not: a guard never entered or left, a marker too late."""

from __future__ import annotations

import pytest

from pytest_bninvariants import guard_registry
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.plugin.markers import as_written, guard_marks, marker_key, wrong_marks
from pytest_bninvariants.plugin.outcomes import lost_findings
from pytest_bninvariants.plugin.outcomes.raise_at_test import function_of, raise_at
from pytest_bninvariants.plugin.ranks.request import late_marks


def fail_unless_judged(item: pytest.Item, marks: list[pytest.Mark]) -> None:
    """Fail a test that has passed, if some of its guards have a verdict that nobody received.

    Args:
        item: the test.
        marks: the markers that requested a guard before its call.

    Raises:
        GateError: if there are such guards that could not judge, or a marker was added too late.
        InvariantBroken: if there are such guards that are broken.
    """
    __tracebackhide__ = True
    in_time = {marker_key(mark) for mark in marks}
    late = [
        f"{as_written(mark)} was added while the test ran, too late to guard it"
        for mark in guard_marks(item)
        if marker_key(mark) not in in_time
    ]
    _fail_for(item, late)


def refuse_wrong_marks(item: pytest.Item) -> None:
    """Fail a test that has a marker which looks like one of ours, and does nothing.

    Raises:
        GateError: if there is such a marker.
    """
    __tracebackhide__ = True
    wrong = "; ".join([*wrong_marks(item), *late_marks(item)])
    if wrong:
        raise_at(function_of(item), GateError(wrong), {})


def fail_if_left_open(item: pytest.Item, before: set[int]) -> None:
    """Fail a test that entered guards and never left them, once its fixtures have ended.

    What guards found while the fixtures ended fails it, too.

    Args:
        item: the test.
        before: numbers of the guards that earlier tests or fixtures had opened.

    Raises:
        GateError: if the test left guards open.
        InvariantBroken: if a guard's verdict got lost in the teardown.
    """
    __tracebackhide__ = True
    open_now = guard_registry.open_guards.items()
    left_open = [guard for number, guard in open_now if number not in before]
    for guard in left_open:
        guard.stop()
    _fail_for(item, [guard.left_open for guard in left_open])


def let_own_failure_win(item: pytest.Item, error: BaseException) -> None:
    """Forget complaints about a test that fails or skips by itself, and note what got lost."""
    guard_registry.complaints.clear()
    lost_findings.add_lost_to(item, error)


def _fail_for(item: pytest.Item, complaints: list[str]) -> None:
    """Fail a test for complaints, for guards that were not entered, and for lost findings."""
    __tracebackhide__ = True
    own = lost_findings.own_failure(item)
    if own is not None:
        let_own_failure_win(item, own)
        return
    texts = [*guard_registry.complaints.values(), *complaints]
    guard_registry.complaints.clear()
    lost = lost_findings.take_lost(item)
    if not (texts or lost):
        return
    from pytest_bninvariants.invariants.conclude import join_failures

    broken, unjudged = lost_findings.as_failures(lost)
    failure = join_failures(broken, list(dict.fromkeys([*texts, *unjudged])))
    assert failure is not None
    (getattr(item, "_excinfo", None) or []).clear()  # such as unittest's unexpected success
    raise_at(function_of(item), failure, {})
