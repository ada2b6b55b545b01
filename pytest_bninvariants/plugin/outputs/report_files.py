"""`--bn-report=DIR`: write the record of a run as data, as a page and as GitLab reads it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pytest_bninvariants.plugin.outputs.ci_findings import ci_findings
from pytest_bninvariants.plugin.outputs.header import versions
from pytest_bninvariants.plugin.outputs.run_record import RunRecord
from pytest_bninvariants.reporting.gitlab_data import code_quality
from pytest_bninvariants.reporting.page.run_report import run_report

SCHEMA = 1
"""The version of report.json's keys; new keys leave it as it is."""


class ReportFiles:
    """The hooks that write the report, once all tests have run.

    Args:
        record: what was found.
        folder: where to write; it is made if it is not there.
    """

    def __init__(self, record: RunRecord, folder: Path) -> None:
        self._record = record
        self._folder = folder
        self._trouble = ""

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files; a run whose report cannot be written fails."""
        data = self._data()
        issues = code_quality(ci_findings(self._record, session.config.rootpath))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(data, allow_nan=False)
            (self._folder / "report.json").write_text(text, encoding="utf-8")
            (self._folder / "gl-code-quality.json").write_text(json.dumps(issues), encoding="utf-8")
            (self._folder / "index.html").write_text(run_report(data), encoding="utf-8")
        except OSError as error:
            self._trouble = f"--bn-report={self._folder}: {error.strerror}"
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where the page is."""
        page = self._folder / "index.html"
        terminalreporter.ensure_newline()
        terminalreporter.line(self._trouble or f"bn report: {page}")

    def _data(self) -> dict[str, Any]:
        found = [
            test for test in self._record.tests if test.verdicts or test.failures or test.audit
        ]
        return {
            "schema": SCHEMA,
            "versions": {**versions(), "Python": platform.python_version()},
            "tests": [asdict(test) for test in found],
            "laws": list(self._laws()),
        }

    def _laws(self) -> Iterator[dict[str, Any]]:
        """Yield what the conformance kit's tests recorded."""
        for test in self._record.tests:
            if test.law is not None:
                yield test.law
