"""Word what the ranks of a test have to say, the rank that matters first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from _pytest._code.code import ReprEntryNative

from pytest_bninvariants.plugin.outcomes.raise_at_test import raise_at
from pytest_bninvariants.plugin.outcomes.reports import RankFailure, strip_prefix
from pytest_bninvariants.plugin.ranks.phase_results import Outcome, PhaseResult


def failed_report(item: pytest.Function, phase: str, text: str) -> pytest.TestReport:
    """Return the report of a test that fails, at its `def`, with a text."""
    error = RankFailure(text)
    try:
        raise_at(item.obj, error, {})
    except RankFailure:
        traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    excinfo = pytest.ExceptionInfo.from_exception(error.with_traceback(traceback))
    longrepr: Any = item.repr_failure(excinfo)
    report = pytest.TestReport(
        item.nodeid,
        item.location,
        dict.fromkeys(item.keywords, 1),
        "failed",
        longrepr,
        phase,  # type: ignore[arg-type]
    )
    strip_prefix(report)
    return report


def lead_with(report: pytest.TestReport, rank: int) -> None:
    """Begin a failure's text, and its line in the summary, with the rank."""
    longrepr: Any = report.longrepr
    crash = getattr(longrepr, "reprcrash", None)
    if crash is None:
        report.longrepr = f"rank {rank}: {report.longreprtext}"
        return
    crash.message = f"rank {rank}: {crash.message}"
    headline = crash.message.partition("\n")[0]
    first = longrepr.chain[0][0] if hasattr(longrepr, "chain") else longrepr.reprtraceback
    first.reprentries.insert(0, ReprEntryNative([f"{headline}\n"]))


def add_others(report: pytest.TestReport, lead: PhaseResult, others: Iterable[PhaseResult]) -> None:
    """Add to a failure's text how the other ranks came through."""
    longrepr: Any = report.longrepr
    for other in others:
        text = _text_of(other, lead)
        if hasattr(longrepr, "addsection"):
            longrepr.addsection(f"rank {other.rank}", text)
        else:
            longrepr = report.longrepr = f"{longrepr}\nrank {other.rank}: {text}"


def _text_of(result: PhaseResult, lead: PhaseResult) -> str:
    if result.report is None:
        return result.text
    if result.outcome is Outcome.SKIPPED:
        return f"skipped: {skip_reason(result)}"
    if result.outcome is not Outcome.FAILED:
        return str(result.outcome.value)
    place, message = crash_of(result)
    if (place, message) == crash_of(lead):
        return "failed in the same way"
    if lead.report is None and place:  # it follows from the other's end, and is long
        return f"failed: {message.partition(chr(10))[0]} ({place})"
    return result.report.longreprtext


def crash_of(result: PhaseResult) -> tuple[str, str]:
    """Return where a rank's failure was raised, and its message."""
    longrepr: Any = result.report and result.report.longrepr
    crash = getattr(longrepr, "reprcrash", None)
    if crash is None:
        return "", f"rank {result.rank}"
    message = str(crash.message)
    return f"{crash.path}:{crash.lineno}", message.removeprefix(f"rank {result.rank}: ")


def skip_reason(result: PhaseResult) -> str:
    """Return why a rank skipped the test."""
    longrepr = result.report.longrepr if result.report else None
    reason = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
    return reason.removeprefix("Skipped: ")
