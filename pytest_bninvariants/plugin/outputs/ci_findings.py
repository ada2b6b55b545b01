"""Read off the record of a run what a CI is to show, each beside a line of the repository."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pytest_bninvariants.plugin.outputs.run_record import RunRecord, TestRecord
from pytest_bninvariants.plugin.outputs.verdict_log import RankedVerdict
from pytest_bninvariants.reporting.ci_finding import CIFinding
from pytest_bninvariants.verdict import AUDIT

_WORKSPACES = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")  # where GitHub and GitLab have the repository


def ci_findings(record: RunRecord, root: Path) -> Iterator[CIFinding]:
    """Yield what failed tests, and what an audit told of tests that passed.

    Args:
        record: the record of the run.
        root: pytest's root folder.
    """
    for test in record.tests:
        failures = test.failures if test.outcome == "failed" else []
        for each in failures:
            yield _finding(test, each, "error", root)
        audited = test.audit["findings"] if test.audit is not None else []
        for found in audited:
            if not (found["fails"] and _are_of_an_audit(failures)):  # or it is told already
                level = "warning" if found["fails"] else "notice"
                yield _finding(test, {"verdict": found["verdict"], "ranks": []}, level, root)


def _finding(test: TestRecord, found: RankedVerdict, level: str, root: Path) -> CIFinding:
    places = [cause["place"] for cause in found["verdict"]["causes"]]
    files = (place["file"] for place in places if place is not None)
    return CIFinding(
        level=level,
        test=test.test,
        file=_in_repository(test.file, root) or test.file,
        line=test.line,
        verdict=found["verdict"],
        ranks=tuple(found["ranks"]),
        files={file: _in_repository(file, root) for file in files},
    )


def _in_repository(file: str, root: Path) -> str | None:
    """Return a file as the CI knows it; None if it is not in the repository."""
    path = (root / file).resolve()
    named = (os.environ.get(name) for name in _WORKSPACES)
    for top in (*(Path(name).resolve() for name in named if name), root.resolve()):
        if path.is_relative_to(top):
            return path.relative_to(top).as_posix()
    return None


def _are_of_an_audit(failures: list[RankedVerdict]) -> bool:
    return any(each["verdict"]["guard"].startswith(AUDIT) for each in failures)
