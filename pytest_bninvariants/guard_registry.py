"""Guards and findings that the pytest layer has yet to check, in a module that imports no torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from pytest_bninvariants.errors import GateError, InvariantBroken
    from pytest_bninvariants.invariants.guard import Guard

complaints: dict[int, str] = {}
"""Complaints about guards that were not entered yet, by the guards' numbers. The pytest layer fails
a test that leaves any."""

open_guards: dict[int, Guard] = {}
"""Guards that were entered and have not ended, by their numbers. The pytest layer checks them after
the test and its fixtures have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a guard found, until a test's report tells it.

    Args:
        failure: the guard's failure.
        carrier: the exception that carries it: the failure itself, or the exception that ended the
            guarded block and has a note; None if it was raised nowhere.
        way: how it got lost, in words, should no report tell it.
        task: the asyncio task in which the carrier was raised, if any.
    """

    failure: InvariantBroken | GateError
    carrier: BaseException | None
    way: str
    task: asyncio.Task[Any] | None = None


findings: list[Finding] | None = None
"""What guards found since a report was last made; None outside of a pytest run, where nobody would
read it."""


@contextmanager
def collect_findings() -> Iterator[None]:
    """Collect findings for a while."""
    global findings
    before, findings = findings, []
    try:
        yield
    finally:
        findings = before


def add_raised(failure: InvariantBroken | GateError) -> None:
    """Add a failure that is about to be raised in the user's code."""
    if findings is None or any(finding.failure is failure for finding in findings):
        return
    task = _current_task()
    thread = threading.current_thread().name
    way = (
        f"it was raised in thread {thread!r}, from which it did not reach the test"
        if task is None
        else "it was raised in a task that nobody awaited"
    )
    findings.append(Finding(failure=failure, carrier=failure, way=way, task=task))


def add_noted(failure: InvariantBroken, error: BaseException) -> None:
    """Add a failure that is not raised, since another exception ended the guarded block."""
    if findings is not None:
        way = f"{type(error).__name__} ended its block, and was caught outside of the guard"
        findings.append(Finding(failure=failure, carrier=error, way=way))


def add_unraised(failure: InvariantBroken | GateError, way: str) -> None:
    """Add a failure that cannot be raised, since nobody would receive it."""
    if findings is not None:
        findings.append(Finding(failure=failure, carrier=None, way=way))


def _current_task() -> asyncio.Task[Any] | None:
    import asyncio

    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        return None
