"""Findings as GitHub reads them: workflow commands and Markdown, whatever the names in them."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pytest_bninvariants.reporting.ci_finding import CIFinding
from pytest_bninvariants.reporting.github_text import (
    RunCounts,
    step_summary,
    workflow_commands,
)
from tests.reporting.test_verdict_data import of_training, verdict_with

NOTHING = RunCounts(held=0, tests=0, audited=0)
COMMAND = re.compile(r"::(\w+) file=(.*?),line=(\d+),title=(.*?)::(.*)")


def finding(verdict: Any, test: str = "test_it.py::test_it", **more: Any) -> CIFinding:
    data = verdict if isinstance(verdict, dict) else verdict.to_dict()
    places = [cause["place"] for cause in data["causes"] if cause["place"]]
    plain = {"level": "error", "test": test, "file": "tests/test_it.py", "line": 7, "ranks": ()}
    files = {place["file"]: "src/train.py" for place in places}
    return CIFinding(**{**plain, "verdict": data, "files": files, **more})


def unescaped(text: str) -> str:
    for escape, character in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%0D", "\r")):
        text = text.replace(escape, character)
    return text.replace("%25", "%")


def read(line: str) -> tuple[str, str, int, str, str]:
    """Read a command as GitHub's runner does."""
    match = COMMAND.fullmatch(line)
    assert match, line
    level, file, number, title, message = match.groups()
    return level, unescaped(file), int(number), unescaped(title), unescaped(message)


def test_a_cause_with_a_place_is_shown_there() -> None:
    (line,) = workflow_commands([finding(verdict_with("a"))])
    level, file, number, title, message = read(line)
    assert (level, file, number) == ("error", "src/train.py", 3)
    assert title == "1 of 1 a a: a (a)"
    assert message.splitlines() == [
        "a: a",
        "a a at src/train.py:3 in a",
        "fix: a",
        "in test_it.py::test_it",
    ]


def test_a_cause_without_a_place_or_in_a_library_is_shown_at_the_test() -> None:
    (line,) = workflow_commands([finding(of_training())])
    assert read(line)[1:3] == ("tests/test_it.py", 7)
    (line,) = workflow_commands([finding(verdict_with("lib.py"), files={"lib.py": None})])
    assert read(line)[1:3] == ("tests/test_it.py", 7)
    assert "at lib.py:3 in lib.py" in read(line)[4]


def test_a_verdict_without_a_cause_is_shown_at_the_test() -> None:
    (line,) = workflow_commands([finding({**of_training().to_dict(), "causes": []})])
    assert read(line)[4] == "in test_it.py::test_it"


def test_tests_that_met_one_cause_share_a_command() -> None:
    verdict = verdict_with("a")
    findings = [finding(verdict, f"test_{number}", ranks=(0,)) for number in (1, 2, 3, 4, 4)]
    (line,) = workflow_commands(findings)
    assert read(line)[4].splitlines()[-1] == "in test_1, test_2, test_3 and 1 more"
    warning = finding(verdict, level="warning")
    assert len(workflow_commands([*findings, warning, finding(verdict_with("b"))])) == 3


@given(st.text(st.characters() | st.sampled_from("%:,\r\n")))
def test_no_name_ends_a_command_or_begins_another(name: str) -> None:
    (line,) = workflow_commands([finding(verdict_with(name), name, file=name)])
    assert len(line.splitlines()) == 1
    line.encode("utf-8")
    assert read(line)[:3] == ("error", "src/train.py", 3)


@pytest.mark.parametrize("name", ["100%", "a:b,c", "a,line=1::error::x", "%0A::error::x"])
def test_names_are_shown_as_they_are(name: str) -> None:
    (line,) = workflow_commands([finding(verdict_with(name))])
    assert read(line)[3] == f"1 of 1 {name} {name}: {name} ({name})"


def cells(text: str) -> list[str]:
    """Return the cells of the last row of a table, as they are shown."""
    row = text.rstrip().splitlines()[-1]
    assert row.startswith("| ")
    codes = [part.strip() for part in row.strip("|").split("|")]
    assert all(re.fullmatch(r"<code>[A-Za-z0-9 ]*(&#\d+;[A-Za-z0-9 ]*)*</code>", c) for c in codes)
    return [html.unescape(code[6:-7]) for code in codes]


def test_the_summary_has_a_row_for_each_failure() -> None:
    counts = RunCounts(held=3, tests=4, audited=0)
    text = step_summary([finding(of_training(), ranks=(0, 1))], counts)
    assert "3 guards held, 1 failure" in text
    assert cells(text) == [
        "test_it.py::test_it (rank 0, 1)",
        "frozen_bn()",
        "1 of 1 frozen BN layer changed: 0 (training-mode)",
        "tests/test_it.py:7",
    ]


@given(st.text(st.sampled_from("|`*_[]<>&#\\\n @:!~$a\ud800")))
def test_no_name_is_read_as_markdown(name: str) -> None:
    text = step_summary([finding(verdict_with(name), name)], NOTHING)
    assert len(cells(text)) == 4
    text.encode("utf-8")


def test_the_summary_is_empty_where_nothing_was_judged() -> None:
    assert step_summary([], NOTHING) == ""
    assert "1 guard held, 0 failures" in step_summary([], RunCounts(held=1, tests=1, audited=0))
    assert "2 tests audited" in step_summary([], RunCounts(held=0, tests=0, audited=2))


def test_a_summary_of_many_failures_is_cut() -> None:
    data = of_training().to_dict()
    text = step_summary([finding(data, f"test_{number}") for number in range(1000)], NOTHING)
    assert text.count("<code>test&#95;") == 200
    assert "and 800 more" in text
    assert len(text.encode()) < 2**20
