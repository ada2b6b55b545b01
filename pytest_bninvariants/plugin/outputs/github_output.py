"""Show on GitHub what failed, at the line that caused it, and in the summary of the step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_bninvariants.plugin.outputs.run_record import RunRecord, TestRecord
from pytest_bninvariants.plugin.outputs.verdict_log import RankedVerdict
from pytest_bninvariants.reporting.github_text import (
    GitHubFinding,
    RunCounts,
    step_summary,
    workflow_commands,
)
from pytest_bninvariants.verdict import AUDIT


class GitHubOutput:
    """The hooks that write, once all tests have run.

    Args:
        record: what was found.
        root: pytest's root folder.
    """

    def __init__(self, record: RunRecord, root: Path) -> None:
        self._record = record
        self._root = root
        self._workspace = Path(os.environ.get("GITHUB_WORKSPACE") or root)
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
        for line in workflow_commands(self._findings()):
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
        return step_summary(list(self._findings()), counts)

    def _findings(self) -> Iterator[GitHubFinding]:
        """Yield what failed tests, and what an audit told of tests that passed."""
        for test in self._record.tests:
            failures = test.failures if test.outcome == "failed" else []
            for each in failures:
                yield self._finding(test, each, "error")
            audited = test.audit["findings"] if test.audit is not None else []
            for found in audited:
                if not (found["fails"] and _are_of_an_audit(failures)):  # or it is told already
                    level = "warning" if found["fails"] else "notice"
                    yield self._finding(test, {"verdict": found["verdict"], "ranks": []}, level)

    def _finding(self, test: TestRecord, found: RankedVerdict, level: str) -> GitHubFinding:
        places = [cause["place"] for cause in found["verdict"]["causes"]]
        files = (place["file"] for place in places if place is not None)
        return GitHubFinding(
            level=level,
            test=test.test,
            file=self._in_repository(test.file) or test.file,
            line=test.line,
            verdict=found["verdict"],
            ranks=tuple(found["ranks"]),
            files={file: self._in_repository(file) for file in files},
        )

    def _in_repository(self, file: str) -> str | None:
        """Return a file as GitHub knows it; None if it is not in the repository."""
        path = (self._root / file).resolve()
        for top in (self._workspace.resolve(), self._root.resolve()):
            if path.is_relative_to(top):
                return path.relative_to(top).as_posix()
        return None


def _are_of_an_audit(failures: list[RankedVerdict]) -> bool:
    return any(each["verdict"]["guard"].startswith(AUDIT) for each in failures)
