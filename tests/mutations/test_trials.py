"""A fault is killed by a test that passes without it, after the same tests."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray")

from tests.mutations.session import ChosenTests
from tests.mutations.trials import CleanRuns, Result, Run, Verdict, judge

TESTS = """
import os

state = []

def test_plain():
    pass

def test_leaves_something():
    state.append(1)

def test_depends_on_order():
    assert state == []

def test_of_the_fault():
    assert "FAULTY" not in os.environ
"""
PLAIN, LEAVES, DEPENDS, NOTICES = (
    f"test_it.py::test_{name}"
    for name in ("plain", "leaves_something", "depends_on_order", "of_the_fault")
)


class Driver:
    """Runs what a trial asks for in pytest sessions of this process."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pytester, self._monkeypatch = pytester, monkeypatch
        pytester.makepyfile(test_it=TESTS)
        self.runs: list[Run] = []

    def judge(self, tests: list[str], clean: CleanRuns) -> Verdict:
        """Return the verdict, and keep the runs that it took."""
        self.runs = []
        trial = judge(tests, clean)
        run = next(trial)
        while True:
            self.runs.append(run)
            try:
                run = trial.send(self._result(run))
            except StopIteration as stop:
                verdict: Verdict = stop.value
                return verdict

    def _result(self, run: Run) -> Result:
        begun = Path(self._pytester.path, "begun")
        begun.write_text("")
        if not run.tests:
            return Result(status=0, begun=[])
        with self._monkeypatch.context() as patch:
            if run.faulty:
                patch.setenv("FAULTY", "1")
            plugin = ChosenTests(run.tests, begun)
            done = self._pytester.inline_run("-p", "no:randomly", plugins=[plugin])
        return Result(status=done.ret, begun=begun.read_text().splitlines())


@pytest.fixture
def driver(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(pytester, monkeypatch)


def test_a_test_that_passes_without_the_fault_kills_it(driver: Driver) -> None:
    verdict = driver.judge([PLAIN, NOTICES, LEAVES], CleanRuns())
    assert verdict == Verdict(killed=True, killer=NOTICES)
    assert driver.runs[-1] == Run(tests=[PLAIN, NOTICES], faulty=False)


def test_a_test_that_fails_without_the_fault_too_is_named_and_the_rest_decides(
    driver: Driver,
) -> None:
    clean = CleanRuns()
    verdict = driver.judge([LEAVES, DEPENDS, PLAIN], clean)
    assert verdict == Verdict(unreliable=[DEPENDS])
    verdict = driver.judge([LEAVES, DEPENDS, PLAIN, NOTICES], clean)
    assert verdict == Verdict(killed=True, killer=NOTICES, unreliable=[DEPENDS])
    assert driver.judge([DEPENDS, LEAVES], clean) == Verdict()


def test_tests_run_once_without_a_fault_and_so_do_their_first_ones(driver: Driver) -> None:
    clean = CleanRuns()
    clean.note([PLAIN, LEAVES, NOTICES, DEPENDS], passed=True)
    assert driver.judge([PLAIN, LEAVES, NOTICES], clean).killed
    assert [run.faulty for run in driver.runs] == [True]
    assert clean.passes([LEAVES, NOTICES]) is None


def test_a_fault_that_no_test_reaches_survives(driver: Driver) -> None:
    assert driver.judge([], CleanRuns()) == Verdict()
