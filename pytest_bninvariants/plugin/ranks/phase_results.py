"""How each rank came through each phase of a test: its setup, its call, its teardown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pytest_bninvariants.plugin.ranks.member import OF_ANOTHER_RANK
from pytest_bninvariants.ranks.stacks import (
    has_function,
    main_stack,
    stack_lines,
    whereabouts,
)

if TYPE_CHECKING:
    from pytest_bninvariants.ranks.supervision import RankRecord

_STRICT = ("[XPASS(strict)]", "Unexpected success")
_SHOWN_LINES = 20
_FATAL = "Fatal Python error: "  # with which faulthandler begins


class Outcome(Enum):
    """How a rank came through a phase."""

    PASSED = "passed"
    SKIPPED = "skipped"
    XFAILED = "failed as expected"
    XPASSED = "passed, though it was expected to fail"
    XPASSED_STRICTLY = "passed, though it had to fail"
    FAILED = "failed"
    OF_ANOTHER = "passed what another rank failed in"
    DIED = "died"
    STOPPED = "was stopped"


class SentReport(NamedTuple):
    """A report that a rank sent, and when, in seconds since the epoch."""

    report: pytest.TestReport
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """How one rank came through one phase.

    Args:
        rank: the rank.
        outcome: how.
        at: when that was known, in seconds since the epoch.
        report: pytest's report; None if the rank could not send one.
        text: what happened, if it could not.
    """

    rank: int
    outcome: Outcome
    at: float
    report: pytest.TestReport | None = None
    text: str = ""


def results_of(record: RankRecord, reports: list[SentReport]) -> dict[str, PhaseResult]:
    """Return a rank's results by phase, without phases that it did not come to.

    Args:
        record: how the rank ended.
        reports: what it reported.
    """
    results = {}
    for report, at in reports:
        if not hasattr(report, "context"):  # a subtest's, which is told by itself
            results[str(report.when)] = PhaseResult(
                rank=record.rank, outcome=_outcome_of(report), at=at, report=report
            )
    if "ended" not in record.said or "refused" in record.said:
        results.setdefault(_next_phase(results), _broken_off(record))
    return results


def read_reports(config: pytest.Config, record: RankRecord) -> list[SentReport]:
    """Return the reports that a rank sent."""
    make = config.hook.pytest_report_from_serializable  # it uses up the data
    return [
        SentReport(make(config=config, data=message.content), message.sent_at)
        for message in record.messages
        if message.kind == "report"
    ]


def _next_phase(results: dict[str, PhaseResult]) -> str:
    if "setup" not in results:
        return "setup"
    passed = results["setup"].outcome is Outcome.PASSED
    return "call" if passed and "call" not in results else "teardown"


def _outcome_of(report: pytest.TestReport) -> Outcome:
    if hasattr(report, "wasxfail"):
        return Outcome.XFAILED if report.skipped else Outcome.XPASSED
    if hasattr(report, OF_ANOTHER_RANK):
        return Outcome.OF_ANOTHER
    if report.failed and any(each in str(report.longrepr) for each in _STRICT):
        return Outcome.XPASSED_STRICTLY
    return Outcome(report.outcome)


def _broken_off(record: RankRecord) -> PhaseResult:
    """Return the result of the phase in which a rank died, refused to go on, or was stopped."""
    refusal = next((message for message in record.messages if message.kind == "refused"), None)
    if refusal is not None:
        outcome, text, at = Outcome.DIED, str(refusal.content), refusal.sent_at
    else:
        outcome = Outcome.STOPPED if record.stopped else Outcome.DIED
        text, at = "\n".join(_end_of(record)), record.ended_at
    return PhaseResult(rank=record.rank, outcome=outcome, at=at, text=text)


def _end_of(record: RankRecord) -> Iterator[str]:
    """Yield how a rank ended, what it wrote before, and where it was."""
    from pytest_bninvariants.ranks.group import Membership

    written, fatal, crash = record.errors.partition(_FATAL)
    stack = record.stack or main_stack(fatal + crash)
    waits = "joined" not in record.said and has_function(stack, Membership.missing_ranks.__name__)
    where = "for the others to reach the test" if waits else whereabouts(stack)
    link = "; it waited " if record.stopped else " "
    yield (record.stopped or record.died) + (link + where if where else "")
    if not record.stopped:
        yield from _last_lines(written)
    if stack and not waits:
        yield from ("", "its stack, the innermost call last:", *stack_lines(stack))


def _last_lines(text: str) -> list[str]:
    lines = text.rstrip().splitlines()[-_SHOWN_LINES:]
    return ["", "the end of what it wrote to stderr:", *lines] if lines else []
