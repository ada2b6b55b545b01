"""Word findings as GitHub's workflow commands, and as Markdown for the summary of a step.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_bninvariants.diagnosis.wording import counted, first_few
from pytest_bninvariants.reporting.ci_finding import CIFinding
from pytest_bninvariants.reporting.lines import printable

_NAMED_TESTS = 3
_ROWS = 200  # GitHub refuses a summary of more than 1 MiB
_MARKUP = re.compile(r"[^A-Za-z0-9 ]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """How much was judged in a run.

    Args:
        held: how many guards held.
        tests: how many tests had guards.
        audited: how many tests were audited.
    """

    held: int
    tests: int
    audited: int


def workflow_commands(findings: Iterable[CIFinding]) -> list[str]:
    """Return a workflow command for each cause at each line, with the tests that met it."""
    groups: dict[tuple[object, ...], list[CIFinding]] = {}
    for finding in findings:
        for number, cause in enumerate(finding.verdict["causes"] or [None]):
            name = "" if cause is None else cause["name"]
            place = finding.place_of(cause)
            layers = () if cause is None else tuple(cause["layers"])
            key = finding.level, place, finding.verdict["model"], name, layers, number
            groups.setdefault(key, []).append(finding)
    return [_command(group, number) for (*_, number), group in groups.items()]


def _command(group: list[CIFinding], number: Any) -> str:
    first = group[0]
    causes = first.verdict["causes"]
    cause = causes[number] if causes else None
    file, line = first.place_of(cause)
    properties = {"file": file, "line": str(line or 1), "title": first.verdict["headline"]}
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    tests = [*dict.fromkeys(finding.test for finding in group)]
    lines = [*_cause_lines(first, cause), f"in {first_few(tests, _NAMED_TESTS)}"]
    return f"::{first.level} {told}::{_message(chr(10).join(lines))}"


def _cause_lines(finding: CIFinding, cause: Mapping[str, Any] | None) -> Iterator[str]:
    if cause is None:
        return
    yield f"{cause['name']}: {cause['why']}"
    place = cause["place"]
    if place is not None:
        file = finding.files[place["file"]] or place["file"]
        where = f"{file}:{place['line']} in {place['function']}"
        yield f"{cause['did']} {place['call']} at {where}"
    yield f"fix: {cause['fix']}"


def _message(text: str) -> str:
    """Escape a workflow command's message."""
    text = "\n".join(printable(line) for line in text.split("\n"))
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape a workflow command's property."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def step_summary(findings: list[CIFinding], counts: RunCounts) -> str:
    """Return the Markdown of a step's summary; empty if nothing was judged.

    Args:
        findings: what is to be told.
        counts: how much was judged.
    """
    if not (findings or counts.tests or counts.audited):
        return ""
    lines = ["### pytest-bninvariants", "", _totals(findings, counts), ""]
    if findings:
        lines += ["| test | guard | found | where |", "|---|---|---|---|"]
        lines += [_row(finding) for finding in findings[:_ROWS]]
        more = len(findings) - _ROWS
        lines += ["", f"and {more} more"] if more > 0 else []
    return "\n".join([*lines, "", ""])


def _totals(findings: list[CIFinding], counts: RunCounts) -> str:
    broke = sum(finding.level == "error" for finding in findings)
    parts = [f"{counted(counts.held, 'guard')} held", f"{counted(broke, 'failure')}"]
    if counts.audited:
        parts.append(f"{counted(counts.audited, 'test')} audited")
    return ", ".join(parts)


def _row(finding: CIFinding) -> str:
    verdict = finding.verdict
    known = [cause for cause in verdict["causes"] if cause["place"] is not None]
    cause = [*known, *verdict["causes"], None][0]
    file, line = finding.place_of(cause)
    ranks = f" (rank {', '.join(map(str, finding.ranks))})" if finding.ranks else ""
    cells = (finding.test + ranks, verdict["guard"], verdict["headline"], f"{file}:{line}")
    return f"| {' | '.join(f'<code>{_literal(cell)}</code>' for cell in cells)} |"


def _literal(text: str) -> str:
    """Return a text that Markdown shows as it is.

    An entity stands for its character and never for markup: https://spec.commonmark.org/0.31.2/
    """
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", printable(text.replace("\n", " ")))
