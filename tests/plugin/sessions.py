"""Run whole pytest sessions, and read what they say in four places that must agree."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any
from xml.etree import ElementTree

import pytest
from torch import nn

import pytest_bninvariants
from pytest_bninvariants import run_config
from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.trace import assignments

NETS = '''
"""Models that do what a test asks of them."""

import torch
from torch import nn


class Net(nn.Module):
    """A model with two BN layers, in eval."""

    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, 4, bias=False)
        self.bn2 = nn.BatchNorm1d(4)
        nn.init.eye_(self.fc.weight)
        self.eval()

    def forward(self, x):
        return self.bn2(self.fc(self.bn1(x)))


def batch(size=8):
    return torch.arange(4.0 * size).reshape(size, 4).sin()


def hold(model, size=8):
    """Run a model in eval: nothing changes."""
    model.eval()
    model(batch(size))


def drift(model, size=8):
    """Run a model in training mode: the statistics of its BN layers change."""
    model.train()
    model(batch(size))


def nudge(model):
    """Change the model's linear layer and no BN layer."""
    hold(model)
    with torch.no_grad():
        model.fc.weight.add_(1)
'''

CONFTEST = """
import json
import os

import pytest
from nets import Net


@pytest.fixture
def model():
    return Net()


@pytest.fixture(scope="module")
def kept():
    return Net()


def pytest_runtest_logreport(report):
    if not {"PYTEST_XDIST_WORKER", "RANK"} & os.environ.keys():  # the parent hears it, too
        record = {
            "name": report.nodeid.partition("::")[2],
            "when": report.when,
            "outcome": report.outcome,
            "xfail": hasattr(report, "wasxfail"),
            "text": report.longreprtext,
            "subtest": hasattr(report, "context"),
        }
        with open(os.environ["REPORTS"], "a") as reports:
            print(json.dumps(record), file=reports)
"""

HEADER = """
import pytest
import torch
from torch import nn

from nets import Net, batch, drift, hold, nudge
"""

LOOP_SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")  # unset, pytest-asyncio warns
HEADLINE = re.compile(r"\d+ of \d+ frozen (BN )?layers? (changed|normalised)")
_PACKAGE = Path(pytest_bninvariants.__file__).parent
_OUR_FILE = re.compile(rf"{re.escape(str(_PACKAGE))}|\b{_PACKAGE.name}[/\\]\w")
_EXIT_CODE_OF = {True: pytest.ExitCode.TESTS_FAILED, False: pytest.ExitCode.OK}
_CALL, _SETATTR = nn.Module._call_impl, nn.Module.__setattr__
_CODES = _CALL.__code__, _SETATTR.__code__, nn.Module.load_state_dict.__code__


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a session said.

    Args:
        exit_code: its exit code.
        lines: the terminal's lines.
        errors: what it wrote to stderr.
        outcomes: outcome by test, as `Class::test[parameters]`.
        texts: the failures' texts by test; a call's, where the teardown failed too.
        summaries: what the short summary says of each failure, by test.
    """

    exit_code: int
    lines: list[str]
    errors: str
    outcomes: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    summaries: dict[str, str] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """Return the terminal's text."""
        return "\n".join(self.lines)

    def tells_apart(self) -> None:
        """Check that tests named `holds` pass, and those named `drifts` fail as violations."""
        for name, outcome in self.outcomes.items():
            assert outcome == ("passed" if "holds" in name else "failed"), f"{name}: {self.output}"
        assert set(self.outcomes.values()) == {"passed", "failed"}, self.output
        for name in self.texts:
            self.names_a_violation(name)

    def names_a_violation(self, name: str) -> None:
        """Check that a test failed because its model changed, and says so first."""
        assert self.outcomes[name] == "failed", self.output
        headline = self.first_line(name)
        assert HEADLINE.search(headline), self.texts[name]
        assert headline.startswith(self.summaries[name].removesuffix("...")), self.summaries[name]

    def first_line(self, name: str) -> str:
        """Return the first line that a failure's text says of its exception."""
        said = self._said(name)
        assert said, self.texts[name]
        return said[0]

    def says(self, name: str) -> str:
        """Return all that a failure's text says of its exception, as one line."""
        return " ".join(" ".join(self._said(name)).split())

    def _said(self, name: str) -> list[str]:
        return [line[1:].strip() for line in self.texts[name].splitlines() if line[:2] == "E "]


class Sessions:
    """Run sessions in a folder of their own, with some models at hand.

    Args:
        pytester: pytest's own fixture.
    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.folder = pytester.path
        self.caches = False
        pytester.makepyfile(nets=NETS)
        pytester.makeconftest(CONFTEST)
        pytester.syspathinsert()

    def run(
        self,
        source: str,
        *args: str,
        before: str = "",
        alone: bool = False,
        exit_code: int | None = None,
        stdin: bytes | None = None,
    ) -> Session:
        """Run the tests in a source, and hold that all that is said of them agrees.

        Args:
            source: the tests; imports of torch, pytest and the models come before them.
            args: pytest's arguments.
            before: more that comes before the tests.
            alone: run in a process of its own.
            exit_code: what it must end with, if that does not follow from the tests' outcomes.
            stdin: what is typed; only for a process of its own.
        """
        self.pytester.makepyfile(test_it=HEADER + before + dedent(source))
        return self.again(*args, alone=alone, exit_code=exit_code, stdin=stdin)

    def again(
        self,
        *args: str,
        alone: bool = False,
        exit_code: int | None = None,
        stdin: bytes | None = None,
    ) -> Session:
        """Run the tests that are there; arguments and result as `run`."""
        reports, junit = self.folder / "reports.jsonl", self.folder / "junit.xml"
        for file in (reports, junit):
            file.unlink(missing_ok=True)
        result = self.bare("-rA", f"--junitxml={junit}", *args, alone=alone, stdin=stdin)
        records = [json.loads(line) for line in reports.read_text().splitlines()]
        outcomes = _outcomes_of(records)
        session = Session(
            exit_code=int(result.ret),
            lines=result.outlines,
            errors=result.stderr.str(),
            outcomes=outcomes,
            texts={r["name"]: r["text"] for r in reversed(records) if r["outcome"] == "failed"},
            summaries=_summaries_of(result.outlines),
        )
        if exit_code is None:
            exit_code = _EXIT_CODE_OF[bool(_wrong(outcomes))]
        assert session.exit_code == exit_code, session.output
        assert "INTERNALERROR" not in session.output + session.errors
        ours = "\n".join(line for line in session.lines if _OUR_FILE.search(line))
        assert not ours, f"files of ours are named:\n{ours}"
        if not any(record["subtest"] for record in records):
            _hold_that_terminal_agrees(session, result)
            _hold_that_junit_agrees(session, junit)
        return session

    def bare(self, *args: str, alone: bool = False, stdin: bytes | None = None) -> pytest.RunResult:
        """Run pytest without looking at what it says; arguments as `run`."""
        self.pytester._monkeypatch.setenv("REPORTS", str(self.folder / "reports.jsonl"))
        given = [*(() if self.caches else ("-p", "no:cacheprovider")), *args]
        given += (*LOOP_SCOPE, "-p", "no:randomly")  # inner tests stay in their order
        if alone:
            command = [*self.pytester._getpytestargs(), *given]
            typed = pytest.Pytester.CLOSE_STDIN if stdin is None else stdin
            return self.pytester.run(*command, stdin=typed, timeout=120)
        result = self.pytester.runpytest_inprocess(*given)
        hold_that_nothing_is_left_behind()
        return result


def hold_that_nothing_is_left_behind() -> None:
    """Check that no observer, wrapper or setting of a session outlives it in this process."""
    assert observer_api.active_observers == ()
    assert assignments._listeners == []
    assert run_config.current == run_config.RunConfig()
    assert nn.Module._call_impl is _CALL
    assert nn.Module.__setattr__ is _SETATTR
    assert (_CALL.__code__, _SETATTR.__code__, nn.Module.load_state_dict.__code__) == _CODES


def _outcomes_of(records: list[dict[str, Any]]) -> dict[str, str]:
    """Return each test's outcome; a test that fails in its call and in its teardown has both."""
    outcomes: dict[str, list[str]] = {}
    for record in records:
        if record["outcome"] == "rerun" or record["subtest"]:
            continue
        told = outcomes.setdefault(record["name"], [])
        if record["outcome"] == "failed":
            told.append("failed" if record["when"] == "call" else "error")
        elif record["xfail"]:
            told.append("xfailed" if record["outcome"] == "skipped" else "xpassed")
        elif record["outcome"] == "skipped" or record["when"] == "call":
            told.append(record["outcome"])
    return {name: " ".join(told) for name, told in outcomes.items()}


def _wrong(outcomes: dict[str, str]) -> set[str]:
    return {name for name, told in outcomes.items() if {"failed", "error"} & {*told.split()}}


def _summaries_of(lines: list[str]) -> dict[str, str]:
    pattern = re.compile(r"(?:FAILED|ERROR) [^:\s]+::(.+?)(?: - (.*))?$")
    matches = (pattern.match(line) for line in lines)
    return {match[1]: match[2] or "" for match in matches if match}


def _hold_that_terminal_agrees(session: Session, result: pytest.RunResult) -> None:
    said = result.parseoutcomes()
    counted = Counter(part for told in session.outcomes.values() for part in told.split())
    for outcome in ("passed", "failed", "skipped", "xfailed", "xpassed"):
        assert said.get(outcome, 0) == counted[outcome], session.output
    assert said.get("errors", 0) == counted["error"], session.output
    wrong = {
        name for name, told in session.outcomes.items() if {"failed", "error"} & {*told.split()}
    }
    assert session.summaries.keys() == wrong, session.output


def _hold_that_junit_agrees(session: Session, junit: Path) -> None:
    told: dict[str, list[str]] = {}
    for name, outcome, text in _read_junit(junit):
        told.setdefault(name, []).append(outcome)
        if outcome == "failed" and not text.startswith("[XPASS"):
            shown = re.sub(r"^\[gw\d+\].*", "", session.texts[name])
            assert text.strip() == shown.strip(), f"junit has another text: {text}"
    for name, outcome in session.outcomes.items():
        expected = outcome.replace("xpassed", "passed").replace("passed error", "error").split()
        final = told.get(name, [])[-len(expected) :]  # a test that was run again has earlier ones
        assert final == expected, session.output


def _read_junit(junit: Path) -> Iterator[tuple[str, str, str]]:
    words = {"failure": "failed", "error": "error", "skipped": "skipped"}
    for case in ElementTree.parse(junit).iterfind(".//testcase[@classname]"):
        owner = case.attrib["classname"].split(".")[1:]
        name = "::".join([*owner, case.attrib["name"]])
        told = [part for part in case if part.tag in words]
        for part in told:
            expected = part.attrib.get("type") == "pytest.xfail"
            yield name, "xfailed" if expected else words[part.tag], part.text or ""
        if not told:
            yield name, "passed", ""
