"""Find what guards found and no report of the test tells."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

import pytest

from pytest_bninvariants import guard_registry
from pytest_bninvariants.errors import DriftNote, GateError, InvariantBroken
from pytest_bninvariants.frames import callers, is_user_file
from pytest_bninvariants.guard_registry import Finding
from pytest_bninvariants.plugin.outcomes.exceptions import OUR_ERRORS, verdicts_in
from pytest_bninvariants.plugin.outcomes.raise_at_test import code_of


def drop_reported(item: pytest.Item, error: BaseException | None) -> None:
    """Drop the findings that a report tells, since their exception is shown in it.

    Args:
        item: the test.
        error: the exception that is reported.
    """
    if guard_registry.findings:
        shown = _all_shown([error, *_unittests_own(item)])
        guard_registry.findings[:] = [
            finding for finding in guard_registry.findings if id(finding.carrier) not in shown
        ]


def take_lost(item: pytest.Item, error: BaseException | None = None) -> list[Finding]:
    """Return the findings that got lost, and forget all.

    Args:
        item: the test.
        error: the exception that ends it.
    """
    if not guard_registry.findings:
        return []
    drop_reported(item, error)
    test = _code_of_test(item)
    lost = [finding for finding in guard_registry.findings if not _is_received(finding, test)]
    guard_registry.findings.clear()
    return lost


def as_failures(lost: Iterable[Finding]) -> tuple[list[InvariantBroken], list[str]]:
    """Return the violations among lost findings, and the texts of the gate errors."""
    broken, unjudged = [], []
    for finding in lost:
        if isinstance(finding.failure, GateError):
            unjudged.append(f"{finding.failure} ({finding.way})")
        else:
            verdicts = finding.failure.verdicts
            noted = (replace(each, notes=(*each.notes, finding.way)) for each in verdicts)
            broken.append(type(finding.failure)(*noted))
    return broken, unjudged


def add_lost_to(item: pytest.Item, error: BaseException) -> None:
    """Note on a test's own exception which violations got lost before it was raised."""
    told = {verdict.guard for verdict in verdicts_in(error)}
    broken, _ = as_failures(take_lost(item, error))
    for failure in broken:
        if told.isdisjoint(verdict.guard for verdict in failure.verdicts):
            text = f"\nbefore this was raised, a guard had found:\n{failure}"
            error.add_note(DriftNote(text, failure.verdicts))


def own_failure(item: pytest.Item) -> BaseException | None:
    """Return what a TestCase's method raised, which unittest has caught already."""
    for error in _unittests_own(item):
        if not (isinstance(error, pytest.fail.Exception) and "Unexpected success" in str(error)):
            return error
    return None


def _unittests_own(item: pytest.Item) -> list[BaseException]:
    """Return the exceptions that pytest reports for a TestCase's method."""
    return [excinfo.value for excinfo in getattr(item, "_excinfo", None) or ()]


def _code_of_test(item: pytest.Item) -> CodeType | None:
    function: Any = getattr(item, "obj", None)
    handle: Any = getattr(function, "hypothesis", None)
    return code_of(getattr(handle, "inner_test", function))


def _all_shown(errors: Iterable[BaseException | None]) -> set[int]:
    """Return the ids of exceptions that a report shows, with their causes and contexts."""
    shown: set[int] = set()
    pending = [*errors]
    while pending:
        error = pending.pop()
        if error is None or id(error) in shown:
            continue
        shown.add(id(error))
        # Python suppresses the context of an exception that has a cause, too
        pending += [error.__cause__, None if error.__suppress_context__ else error.__context__]
        if isinstance(error, BaseExceptionGroup):
            pending += error.exceptions
    return shown


def _is_received(finding: Finding, test: CodeType | None) -> bool:
    """Tell whether somebody received a finding that no report has told yet.

    What leaves the test's function, its runner reports: unittest, hypothesis. A guard's own failure
    may also be received by the test, which caught it as such.
    """
    error = finding.carrier
    if error is None:
        return finding.is_gone_received
    frames = _frames_of(error)
    if test in [frame.f_code for frame in frames[1:]]:
        return True
    return isinstance(error, OUR_ERRORS) and (not frames or _is_caught(finding, frames[0]))


def _frames_of(error: BaseException) -> list[FrameType]:
    """Return the frames that an exception went through, the one that caught it first."""
    frames, traceback = [], error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return frames


def _is_caught(finding: Finding, catcher: FrameType) -> bool:
    """Tell whether code of the test caught an exception, and not the machinery of a thread or task.

    Args:
        finding: the finding with the exception.
        catcher: the outermost frame that the exception went through.
    """
    task = finding.task
    if task is not None and task.done() and not task.cancelled():
        return not getattr(task, "_log_traceback", False)  # true until somebody retrieves it
    is_in_this_thread = _outermost(catcher) is _outermost(sys._getframe())
    return is_in_this_thread or is_user_file(catcher.f_code.co_filename)


def _outermost(frame: FrameType) -> FrameType:
    *_, outermost = callers(frame)
    return outermost
