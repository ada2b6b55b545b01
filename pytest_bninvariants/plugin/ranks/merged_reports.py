"""Make one report of a test out of those that its ranks sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_bninvariants.plugin.outputs.verdict_log import FAILURES, VERDICTS, join_verdicts
from pytest_bninvariants.plugin.ranks.phase_results import (
    Outcome,
    PhaseResult,
    SentReport,
    read_reports,
    results_of,
)
from pytest_bninvariants.plugin.ranks.rank_texts import (
    add_others,
    crash_of,
    failed_report,
    lead_with,
    skip_reason,
)

if TYPE_CHECKING:
    from pytest_bninvariants.ranks.supervision import RankRecord

_PHASES = ("setup", "call", "teardown")
_AUDIT = "bn_audit"
_EXPECTED = {
    Outcome.XFAILED,
    Outcome.XPASSED,
    Outcome.XPASSED_STRICTLY,
    Outcome.OF_ANOTHER,
    Outcome.STOPPED,
}
_DEATH_FIRST_SECONDS = 1.0  # peers of a rank that died may tell before its death is seen


def merge_reports(item: pytest.Function, records: list[RankRecord]) -> dict[str, pytest.TestReport]:
    """Return a test's reports by phase, after those of its subtests were logged.

    Args:
        item: the test.
        records: what its ranks said, and how they ended.
    """
    by_rank = []
    for record in records:
        reports = read_reports(item.config, record)
        _log_subtests(item, record.rank, reports)
        by_rank.append(results_of(record, reports))
    merged = {}
    for phase in _PHASES:
        results = [results[phase] for results in by_rank if phase in results]
        if results:
            others = [_telling_result(results, phase) for results in by_rank if results]
            report = merged[phase] = _merge(item, phase, results, others)
            _add_what_ranks_recorded(report, results)
    return merged


def _log_subtests(item: pytest.Item, rank: int, reports: list[SentReport]) -> None:
    """Report the subtests of a test: the first rank's, and those that failed on others."""
    for report, _ in reports:
        if hasattr(report, "context") and (rank == 0 or report.failed):
            if report.failed:
                lead_with(report, rank)
            item.ihook.pytest_runtest_logreport(report=report)


def _telling_result(results: dict[str, PhaseResult], phase: str) -> PhaseResult:
    """Return what a rank has to say of a phase: the first that did not pass from there on."""
    later = [results[each] for each in _PHASES[_PHASES.index(phase) :] if each in results]
    later = later or [*results.values()][-1:]
    return next((each for each in later if each.outcome is not Outcome.PASSED), later[0])


def _merge(
    item: pytest.Function, phase: str, results: list[PhaseResult], others: list[PhaseResult]
) -> pytest.TestReport:
    outcomes = {result.outcome for result in results}
    lead = _first_failure(results)
    if lead is None and len(outcomes) == 1 and results[0].report is not None:
        return results[0].report
    if lead is None and Outcome.XFAILED in outcomes and outcomes <= _EXPECTED:
        return next(r.report for r in results if r.outcome is Outcome.XFAILED and r.report)
    lead = lead or _odd_one_out(results)
    report = lead.report or failed_report(item, phase, lead.text)
    if report.skipped:
        passed = [str(each.rank) for each in results if each.outcome is not Outcome.SKIPPED]
        did_not = f"rank {', '.join(passed)} did not"
        text = f"skipped this test ({skip_reason(lead)}), but {did_not}"
        report = failed_report(item, phase, text)
    lead_with(report, lead.rank)
    add_others(report, lead, (each for each in others if each.rank != lead.rank))
    return report


def _first_failure(results: list[PhaseResult]) -> PhaseResult | None:
    """Return the failure from which the others may follow."""
    kinds = {Outcome.FAILED: 0.0, Outcome.DIED: -_DEATH_FIRST_SECONDS}
    failures = [result for result in results if result.outcome in kinds]
    first = min(failures, key=lambda each: each.at + kinds[each.outcome], default=None)
    return next((each for each in failures if first and crash_of(each) == crash_of(first)), first)


def _odd_one_out(results: list[PhaseResult]) -> PhaseResult:
    """Return the result to begin with, where no rank failed and they differ."""
    order = (Outcome.SKIPPED, Outcome.STOPPED, Outcome.XPASSED_STRICTLY, Outcome.OF_ANOTHER)
    for outcome in order:
        for result in results:
            if result.outcome is outcome:
                return result
    return results[0]


def _add_what_ranks_recorded(report: pytest.TestReport, results: list[PhaseResult]) -> None:
    """Give a test's report what all ranks captured, recorded and found, and the longest time."""
    reports = [(result.rank, result.report) for result in results if result.report is not None]
    if not reports:
        return
    report.duration = max(each.duration for _, each in reports)
    report.start = min(each.start for _, each in reports)
    report.stop = max(each.stop for _, each in reports)
    report.sections = [
        (f"{title} (rank {rank})", text) for rank, each in reports for title, text in each.sections
    ]
    first = reports[0][1].user_properties
    for rank, each in reports[1:]:
        more = [(name, value) for name, value in each.user_properties if (name, value) not in first]
        report.user_properties = [*first, *((f"{name} (rank {rank})", v) for name, v in more)]
        first = report.user_properties
    for name in (VERDICTS, FAILURES):
        verdicts = join_verdicts((rank, getattr(each, name, [])) for rank, each in reports)
        if verdicts:
            setattr(report, name, verdicts)
    found = [getattr(each, _AUDIT) for _, each in reports if hasattr(each, _AUDIT)]
    if found:
        setattr(report, _AUDIT, _join_audits(found))


def _join_audits(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the findings of all ranks as those of one test."""
    joined: dict[str, Any] = {
        name: max(each[name] for each in found) for name in ("ran", "layers", "frozen")
    }
    for name in ("findings", "expected"):
        values = joined[name] = []
        for each in found:
            values += [value for value in each[name] if value not in values]
    return joined
