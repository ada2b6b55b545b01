"""Log the verdicts of each test, in the process in which it runs.

The hook gets each of them, and the report of the test's teardown takes all across processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from traceback import format_exception_only
from typing import TYPE_CHECKING, Any

import pytest

from pytest_bninvariants import guard_registry

if TYPE_CHECKING:
    from pytest_bninvariants.verdict import Verdict

VERDICTS = "bn_verdicts"
"""The attribute of a teardown's report that has a test's verdicts, each as a `RankedVerdict`."""
FAILURES = "bn_failures"
"""The attribute of a teardown's report that has those verdicts that failed the test, likewise."""

RankedVerdict = dict[str, Any]
"""Plain data: a `verdict` as `Verdict.to_dict` returns it, and the `ranks` that found it, of those
on which the test ran."""


@dataclass(slots=True, kw_only=True)
class VerdictLog:
    """What the guards of one run of a test found.

    Args:
        ended: the verdicts of all guards. Of those that differ in numbers alone, such as the
            examples of `@given` give by the hundred, it has the last.
        failed: the verdicts that failed the test.
        errors: what implementations of the hook raised.
        ended_by: the error among them, or the group of them, that ended the teardown.
    """

    ended: dict[object, Verdict] = field(default_factory=dict)
    failed: list[Verdict] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    ended_by: BaseException | None = None


_LOG = pytest.StashKey[VerdictLog]()
_RAISED = (Exception, pytest.fail.Exception, pytest.skip.Exception)


def hand_out_verdicts(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Log the verdicts of a phase that has ended, and call the hook for each.

    What the hook raises ends the teardown, so that it neither hides the test's own outcome nor gets
    lost.
    """
    if call.when == "setup":  # of this run; a plugin may run the test again
        item.stash[_LOG] = VerdictLog()
    log = item.stash.setdefault(_LOG, VerdictLog())
    for verdict in guard_registry.take_verdicts():
        log.ended.pop(_key(verdict), None)
        log.ended[_key(verdict)] = verdict
        try:
            item.ihook.pytest_bninvariants_verdict(item=item, verdict=verdict)
        except _RAISED as error:
            error.add_note(f"raised by {_implementer(item, error)} for {verdict.guard}")
            log.errors.append(error)
    if call.when == "teardown" and log.errors:
        _end_with(log, call)


def _end_with(log: VerdictLog, call: pytest.CallInfo[None]) -> None:
    """End a teardown with what the hook raised; an error of its own gets a note of that."""
    if call.excinfo is not None:
        for error in log.errors:
            call.excinfo.value.add_note("".join(format_exception_only(error)).rstrip())
        return
    log.ended_by = _joined(log.errors)
    call.excinfo = pytest.ExceptionInfo.from_exception(log.ended_by)


def hook_error_of(item: pytest.Item, error: BaseException | None) -> BaseException | None:
    """Return the error of a phase, if it is the hook's: it fails the phase, whatever xfail says."""
    log = item.stash.get(_LOG, None)
    is_hooks = log is not None and error is not None and error is log.ended_by
    return error if is_hooks else None


def add_to_report(item: pytest.Item, report: pytest.TestReport, failed: Iterable[Verdict]) -> None:
    """Let the report of a test's teardown have what all of its phases found.

    Args:
        item: the test.
        report: the report of a phase.
        failed: the verdicts in the exception that ended the phase.
    """
    log = item.stash.setdefault(_LOG, VerdictLog())
    if report.failed:
        log.failed += failed
    if report.when == "teardown":
        for name, verdicts in ((VERDICTS, log.ended.values()), (FAILURES, log.failed)):
            if verdicts:
                data = [{"verdict": each.to_dict(), "ranks": []} for each in verdicts]
                setattr(report, name, data)
        del item.stash[_LOG]  # the session keeps its items to the end


def join_verdicts(by_rank: Iterable[tuple[int, list[RankedVerdict]]]) -> list[RankedVerdict]:
    """Return the verdicts of all ranks of a test, each once, with the ranks that found it."""
    joined: list[RankedVerdict] = []
    for rank, found in by_rank:
        for each in found:
            same = next((one for one in joined if one["verdict"] == each["verdict"]), None)
            if same is None:
                joined.append({"verdict": each["verdict"], "ranks": [rank]})
            else:
                same["ranks"].append(rank)
    return joined


def _key(verdict: Verdict) -> object:
    """Return what verdicts have in common that differ in numbers alone."""
    causes = tuple((cause.name, cause.layers, cause.place) for cause in verdict.causes)
    subject = verdict.guard, verdict.model, verdict.source, verdict.layers, verdict.tensors
    return subject, tuple((each.name, each.kind) for each in verdict.changes), causes


def _implementer(item: pytest.Item, error: BaseException) -> str:
    """Return which plugin's implementation of the hook raised an error."""
    codes, traceback = set(), error.__traceback__
    while traceback is not None:
        codes.add(traceback.tb_frame.f_code)
        traceback = traceback.tb_next
    hook = item.ihook.pytest_bninvariants_verdict
    raisers = (each for each in hook.get_hookimpls() if each.function.__code__ in codes)
    names = [each.plugin_name for each in raisers]
    return f"{hook.name} of {names[0] if names else 'a plugin'}"


def _joined(errors: list[BaseException]) -> BaseException:
    """Return one error for all, with a traceback."""
    if len(errors) == 1:
        return errors[0]
    try:
        raise BaseExceptionGroup("pytest_bninvariants_verdict raised more than once", errors)
    except BaseExceptionGroup as group:
        return group
