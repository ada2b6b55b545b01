"""Findings as GitLab's code quality report.

https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from pytest_bninvariants.reporting.ci_finding import CIFinding

_SEVERITIES = {"error": "major", "warning": "minor", "notice": "info"}


def code_quality(findings: Iterable[CIFinding]) -> list[dict[str, Any]]:
    """Return an issue for each finding, at the line of its first cause.

    Args:
        findings: what failed tests, and what an audit told.
    """
    return [_issue(finding) for finding in findings]


def _issue(finding: CIFinding) -> dict[str, Any]:
    causes = finding.verdict["causes"]
    file, line = finding.place_of(causes[0] if causes else None)
    name = causes[0]["name"] if causes else "broken"
    subject = finding.test, finding.verdict["guard"], finding.verdict["model"], name, file
    return {
        "description": f"{finding.test}: {finding.verdict['headline']}",
        "check_name": name,
        "fingerprint": hashlib.sha256("\n".join(subject).encode()).hexdigest(),
        "severity": _SEVERITIES[finding.level],
        "location": {"path": file, "lines": {"begin": max(line, 1)}},
    }
