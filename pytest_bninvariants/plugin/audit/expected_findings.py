"""The files of `--bn-audit-xfails` and `--bn-audit-write-xfails`: findings that are known.

A line is `TEST[RULE-MODEL-LAYER]: REASON`; `*` and `?` work as in a shell, brackets are plain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from pytest_bninvariants.plugin.expectation_file import read_lines

_NO_REASON = "known when this file was written"


@dataclass(slots=True)
class ExpectedFinding:
    """One line of a file.

    Args:
        place: the file and the line's number, for messages.
        test: the pattern of the test's id.
        finding: the pattern of the finding's id, as `RULE-MODEL-LAYER`.
        reason: the reason.
        ran: whether a test that it names ran from its setup to its teardown.
        found: whether the finding was made.
    """

    place: str
    test: str
    finding: str
    reason: str
    ran: bool = False
    found: bool = False

    @property
    def is_gone(self) -> bool:
        """Tell whether its tests ran and no longer have the finding."""
        return self.ran and not self.found

    def expects(self, test: str, finding: str) -> bool:
        """Tell whether the line expects a finding of a test."""
        return _matches(test, self.test) and _matches(finding, self.finding)


@dataclass(slots=True)
class ExpectedFindings:
    """The lines of a file, and what became of them in this run.

    Args:
        lines: the lines.
    """

    lines: list[ExpectedFinding] = field(default_factory=list)

    @classmethod
    def from_file(cls, file: str | None) -> ExpectedFindings:
        """Read a file.

        Raises:
            pytest.UsageError: if the file cannot be read, or a line is malformed.
        """
        if file is None:
            return cls()
        lines = read_lines("--bn-audit-xfails", file)
        return cls([_parse(each.text, each.place) for each in lines])

    def expects(self, test: str, finding: str) -> bool:
        """Tell whether a line expects a finding of a test."""
        return any(line.expects(test, finding) for line in self.lines)

    def note(self, test: str, findings: Iterable[str], *, whole: bool) -> None:
        """Note what of the expected findings a test had.

        Args:
            test: the test's id.
            findings: the ids of its expected findings.
            whole: whether the test ran to its end, so that it could have had all.
        """
        made = list(findings)
        for line in self.lines:
            if _matches(test, line.test):
                line.ran |= whole
                line.found |= any(_matches(each, line.finding) for each in made)

    @property
    def gone(self) -> list[ExpectedFinding]:
        """Return the lines whose tests ran and no longer have the finding."""
        return [line for line in self.lines if line.is_gone]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def _parse(line: str, place: str) -> ExpectedFinding:
    name, _, reason = line.partition("]: ")
    test, bracket, finding = name.rpartition("[")
    if not (test and bracket and finding and reason.strip()):
        raise pytest.UsageError(
            f"{place}: {line!r} is not a line 'TEST[RULE-MODEL-LAYER]: REASON', such as "
            "'tests/test_a.py::test_b[frozen-moved-Net-backbone.1]: mended in the next release'"
        )
    return ExpectedFinding(place, test, finding, reason.strip())


def write_expected(file: str, findings: Iterable[tuple[str, str]], old: ExpectedFindings) -> None:
    """Write a file that expects findings; lines that held keep their reasons.

    Args:
        file: the file.
        findings: the test and the id of each finding.
        old: the lines that this run went by.

    Raises:
        pytest.UsageError: if the file cannot be written.
    """
    kept = [f"{each.test}[{each.finding}]: {each.reason}" for each in old.lines if not each.is_gone]
    new = [f"{test}[{finding}]: {_NO_REASON}" for test, finding in findings]
    text = "\n".join(["# findings of --bn-audit that are known", *kept, *dict.fromkeys(new), ""])
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise pytest.UsageError(f"--bn-audit-write-xfails={file}: {error.strerror}") from None
