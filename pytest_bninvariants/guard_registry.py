"""Guards and findings that the pytest layer has yet to check, in a module that imports no torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    import asyncio

    from pytest_bninvariants.errors import GateError, InvariantBroken
    from pytest_bninvariants.invariants.guard import Guard
    from pytest_bninvariants.verdict import Verdict

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
        failure: the guard's failure, without a traceback.
        find_carrier: returns the exception that carries it, the guard's own or the one that ended
            the guarded block and has a note; None if it was raised nowhere, or is gone.
        way: how it got lost, in words, should no report tell it.
        task: the asyncio task in which the carrier was raised, if any.
        is_gone_received: whether the test has received a carrier that is gone.
    """

    failure: InvariantBroken | GateError
    find_carrier: Callable[[], BaseException | None]
    way: str
    task: asyncio.Task[Any] | None = None
    is_gone_received: bool = False

    @property
    def carrier(self) -> BaseException | None:
        """Return the exception that carries it, if that still exists."""
        return self.find_carrier()


findings: list[Finding] | None = None
"""What guards found since a report was last made; None outside of a pytest run, where nobody would
read it."""


verdicts: list[Verdict] | None = None
"""The verdicts of guards that ended since somebody took them; None where nobody would."""


@contextmanager
def collect_findings() -> Iterator[None]:
    """Collect findings and verdicts for a while."""
    global findings, verdicts
    before, findings, verdicts = (findings, verdicts), [], []
    try:
        yield
    finally:
        findings, verdicts = before


@contextmanager
def ignore_verdicts() -> Iterator[None]:
    """Collect no verdicts for a while, as in a second run of a test."""
    global verdicts
    before, verdicts = verdicts, None
    try:
        yield
    finally:
        verdicts = before


def add_verdict(verdict: Verdict) -> None:
    """Add the verdict of a guard that has ended; equal ones in a row take the memory of one."""
    if verdicts is not None:
        last = verdicts[-1] if verdicts else None
        verdicts.append(last if last is not None and last == verdict else verdict)


def take_verdicts() -> list[Verdict]:
    """Return the verdicts that were added, and forget them."""
    if not verdicts:
        return []
    taken = verdicts[:]
    del verdicts[: len(taken)]
    return taken


def add_raised(failure: InvariantBroken | GateError) -> None:
    """Add a failure that is about to be raised in the user's code."""
    if findings is None or any(finding.carrier is failure for finding in findings):
        return
    task, thread = _current_task(), threading.current_thread()
    way = (
        f"it was raised in thread {thread.name!r}, from which it did not reach the test"
        if task is None
        else "it was raised in a task that nobody awaited"
    )
    # A test that catches it and goes on should not keep the model in its traceback. Elsewhere,
    # the traceback tells whether anybody received it.
    is_tests_own = task is None and thread is threading.main_thread()
    findings.append(
        Finding(
            failure=type(failure)(*failure.args),
            find_carrier=ref(failure) if is_tests_own else lambda: failure,
            way=way,
            task=task,
            is_gone_received=is_tests_own,
        )
    )


def add_noted(failure: InvariantBroken, error: BaseException) -> None:
    """Add a failure that is not raised, since another exception ended the guarded block."""
    if findings is not None:
        way = f"{type(error).__name__} ended its block, and was caught outside of the guard"
        findings.append(Finding(failure=failure, find_carrier=lambda: error, way=way))


def add_unraised(failure: InvariantBroken | GateError, way: str) -> None:
    """Add a failure that cannot be raised, since nobody would receive it."""
    if findings is not None:
        findings.append(Finding(failure=failure, find_carrier=lambda: None, way=way))


def _current_task() -> asyncio.Task[Any] | None:
    import asyncio

    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        return None
