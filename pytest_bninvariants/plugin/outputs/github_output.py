"""Show on GitHub what failed, at the line that caused it, and in the summary of the step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_bninvariants.plugin.outputs.ci_findings import ci_findings
from pytest_bninvariants.plugin.outputs.run_record import RunRecord
from pytest_bninvariants.reporting.github_text import (
    RunCounts,
    step_summary,
    workflow_commands,
)


class GitHubOutput:
    """The hooks that write, once all tests have run.

    Args:
        record: what was found.
        root: pytest's root folder.
    """

    def __init__(self, record: RunRecord, root: Path) -> None:
        self._record = record
        self._root = root
        self._trouble = ""

    def pytest_sessionfinish(self) -> None:
        """Append to the step's summary."""
        file, text = os.environ.get("GITHUB_STEP_SUMMARY"), self._summary()
        if file and text:
            try:
                with open(file, "a", encoding="utf-8") as summary:
                    summary.write(text)
            except OSError as error:
                self._trouble = f"cannot write GITHUB_STEP_SUMMARY={file}: {error.strerror}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write workflow commands, each at the start of a line."""
        terminalreporter.ensure_newline()
        for line in workflow_commands(ci_findings(self._record, self._root)):
            terminalreporter.line(line)
        if self._trouble:
            terminalreporter.line(f"bninvariants: {self._trouble}")

    def _summary(self) -> str:
        tests = self._record.tests
        guards = [each["verdict"] for test in tests for each in test.verdicts]
        audited = [test.audit for test in tests if test.audit is not None]
        counts = RunCounts(
            held=sum(verdict["holds"] for verdict in guards),
            tests=sum(bool(test.verdicts) for test in tests),
            audited=len(audited),
        )
        return step_summary(list(ci_findings(self._record, self._root)), counts)
