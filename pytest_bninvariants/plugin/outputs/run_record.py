"""Record what guards and the audit found in all tests of a run, in the session that reports them.

Each output reads this record: junit's properties, GitHub's annotations, its step summary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_bninvariants.plugin.outputs.verdict_log import FAILURES, VERDICTS, RankedVerdict

_AUDIT = "bn_audit"


@dataclass(slots=True, kw_only=True)
class TestRecord:
    """What was found in the last run of one test.

    Args:
        test: its id.
        file: its file, relative to pytest's root.
        line: the line of its `def`, from 1; 0 if that is unknown.
        outcome: `passed`, `failed` or `skipped`; a rerun that is to come makes it `rerun`.
        verdicts: the verdicts of its guards.
        failures: the verdicts that failed it, an audit's among them.
        law: what a test of the conformance kit checked: the `law`, the `layer`, the `dtype` and the
            `device`; whether it `held`, and the `worst` error over its bound, if that was measured.
            None of another test.
        audit: what the audit found: how many BN layers `ran`, how many of these `layers` in
            training mode, how many of those were `frozen`; and the `findings`, each with its
            `rule`, whether it `fails`, its `ids`, its `marker` and its `verdict`, as
            `Verdict.to_dict` returns it. None without an audit.
    """

    __test__ = False  # pytest would collect a class of that name

    test: str
    file: str
    line: int
    outcome: str = "passed"
    verdicts: list[RankedVerdict] = field(default_factory=list)
    failures: list[RankedVerdict] = field(default_factory=list)
    law: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None


class RunRecord:
    """Collect the records of all tests from their reports, in whichever process each ran."""

    def __init__(self, *, writes_properties: bool) -> None:
        self._writes_properties = writes_properties
        self._records: dict[tuple[str, object], TestRecord] = {}

    @property
    def tests(self) -> list[TestRecord]:
        """Return the records in the order in which the tests began."""
        return list(self._records.values())

    @pytest.hookimpl(tryfirst=True)  # before junit reads the properties
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add what a report has of its test."""
        key = report.nodeid, getattr(report, "node", None)  # `--dist=each` runs it on each worker
        if report.when == "setup" or key not in self._records:
            file, line, _ = report.location
            line = 0 if line is None else line + 1
            self._records[key] = TestRecord(test=report.nodeid, file=file, line=line)
        record = self._records[key]
        if record.outcome != "failed" and report.outcome != "passed":
            record.outcome = report.outcome
        findings = getattr(report, _AUDIT, None)
        if findings is not None:
            record.audit = _audit(findings)
        if report.when == "call":
            record.law = _law(dict(report.user_properties))
        record.verdicts += getattr(report, VERDICTS, ())
        record.failures += getattr(report, FAILURES, ())
        if report.when == "teardown" and self._writes_properties:
            report.user_properties += _properties(record)


def _properties(record: TestRecord) -> Iterator[tuple[str, object]]:
    """Yield the properties that junit's file has of a test; each value is a JSON text."""
    for each in record.verdicts:
        ranks = {"ranks": each["ranks"]} if each["ranks"] else {}
        verdict = {name: value for name, value in each["verdict"].items() if name != "history"}
        yield "bn_verdict", json.dumps(verdict | ranks)
    if record.audit is not None and (record.audit["ran"] or record.audit["findings"]):
        yield "bn_audit", json.dumps(record.audit)


def _law(recorded: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a test of the conformance kit recorded; None of another one, or of a skip."""
    held = "bn_law" in recorded
    if not (held or "bn_broken" in recorded):
        return None
    law, layer, dtype, device = recorded["bn_check"]
    names = {"law": law, "layer": layer, "dtype": dtype, "device": device}
    return {**names, "held": held, "worst": recorded.get("bn_worst")}


def _audit(found: dict[str, Any]) -> dict[str, Any]:
    """Return what an audit's report has for others than its own summary."""
    kept = ("rule", "fails", "ids", "marker", "verdict")
    findings = [{name: each[name] for name in kept} for each in found["findings"]]
    return {name: found[name] for name in ("ran", "layers", "frozen")} | {"findings": findings}
