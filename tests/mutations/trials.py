"""Try faults: the tests with a fault, and after a failure the same tests without it."""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cosmic_ray.work_item import TestOutcome

from tests.mutations import imported_source, session
from tests.mutations.faults import Fault
from tests.mutations.reach import Reach
from tests.mutations.rooms import Room

UNUSABLE = (4, 5)  # exit codes of pytest: no test could be found


@dataclass(frozen=True, kw_only=True)
class Run:
    """Tests to run in one process, with the fault or without it."""

    tests: list[str]
    faulty: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run: its exit status, and the tests that began, of which the last failed."""

    status: int | None
    begun: list[str]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a test noticed a fault: which one, and which fail without the fault as well."""

    killer: str | None = None
    killed: bool = False
    unreliable: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> TestOutcome:
        """The verdict in cosmic-ray's terms."""
        return TestOutcome.KILLED if self.killed else TestOutcome.SURVIVED


class CleanRuns:
    """Which tests pass in a row without a fault, so that each row runs once."""

    def __init__(self) -> None:
        self._passed: list[list[str]] = []
        self._failed: list[list[str]] = []

    def passes(self, tests: list[str]) -> bool | None:
        """Tell whether these pass, or None if nobody knows yet."""
        if any(longer[: len(tests)] == tests for longer in self._passed):
            return True
        return False if tests in self._failed else None

    def note(self, tests: list[str], *, passed: bool) -> None:
        """Remember how a run went."""
        (self._passed if passed else self._failed).append(tests)


def judge(tests: list[str], clean: CleanRuns) -> Generator[Run, Result, Verdict]:
    """Yield the runs that it takes to judge a fault, each given the result of the last."""
    unreliable: list[str] = []
    while True:
        result = yield Run(tests=tests, faulty=True)
        begun = result.begun
        if result.status == 0:
            return Verdict(unreliable=unreliable)
        if begun and clean.passes(begun) is None:
            again = yield Run(tests=begun, faulty=False)
            clean.note(begun, passed=again.status == 0)
        if not begun or clean.passes(begun):
            killer = begun[-1] if begun else None
            return Verdict(killed=True, killer=killer, unreliable=unreliable)
        unreliable.append(begun[-1])
        tests = [test for test in tests if test not in begun]


@dataclass(kw_only=True)
class Trial:
    """A fault that is tried, the runs to come, and what the runs so far printed."""

    fault: Fault
    source: Path
    runs: Generator[Run, Result, Verdict]
    seconds: float = 0.0
    output: str = ""


class Trials:
    """The jobs by which a room's faults are tried; each result may ask for one more.

    Args:
        todo: the faults.
        place: their room.
        reach: which tests reach what.
        folder: where to put sources and outputs.
        within: run the first and the quickest tests in so many seconds, or all.
    """

    def __init__(
        self, todo: list[Fault], place: Room, reach: Reach, folder: Path, within: float | None
    ) -> None:
        self._place, self._reach, self._folder, self._within = place, reach, folder, within
        self._clean = CleanRuns()
        self._waiting = iter(todo)
        self._further: deque[session.Job] = deque()
        self._trials: dict[str, Trial] = {}

    def run(self, workers: int) -> Iterator[tuple[Trial, Verdict]]:
        """Try all, a few at a time, and yield each with its verdict."""
        for ending in session.run_all(self, workers):
            trial = self._trials[ending.job.name]
            trial.seconds += ending.seconds
            trial.output += ending.job.output.read_text(errors="replace")
            _require_usable(ending.status, trial.output)
            try:
                self._further.append(self._job(trial, trial.runs.send(_result(ending))))
            except StopIteration as stop:
                yield trial, stop.value

    def __iter__(self) -> Iterator[session.Job]:
        return self

    def __next__(self) -> session.Job:
        if self._further:
            return self._further.popleft()
        fault = next(self._waiting)
        source = self._folder / f"{len(self._trials)}.py"
        source.write_text(fault.source(), encoding="utf-8")
        trial = Trial(fault=fault, source=source, runs=judge(self._tests(fault), self._clean))
        self._trials[fault.key] = trial
        return self._job(trial, next(trial.runs))

    def _tests(self, fault: Fault) -> list[str]:
        names = self._reach.tests(self._place.tests, fault.module, fault.block)
        if self._within is None:
            return names
        return self._reach.first(self._place.tests, names, self._within)

    def _job(self, trial: Trial, run: Run) -> session.Job:
        output = trial.source.with_suffix(".txt")
        _begun(output).write_text("")
        fault = f"{trial.fault.module}={trial.source}" if run.faulty else None
        return session.Job(
            name=trial.fault.key,
            run=partial(_run_tests, run.tests, fault, _begun(output)),
            seconds=30 + 5 * self._reach.seconds(self._place.tests, run.tests),
            output=output,
        )


def _run_tests(tests: list[str], fault: str | None, begun: Path) -> int:
    if not tests:
        print("no test reaches this")
        return 0
    if fault is not None:
        os.environ[imported_source.FAULT] = fault
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return session.run_tests(tests, session.ChosenTests(tests, begun))


def _begun(output: Path) -> Path:
    return output.with_suffix(".begun")


def _result(ending: session.Ending) -> Result:
    begun = _begun(ending.job.output).read_text(encoding="utf-8").splitlines()
    return Result(status=ending.status, begun=begun)


def _require_usable(status: int | None, output: str) -> None:
    if status in UNUSABLE and "ImportError while loading conftest" not in output:
        raise SystemExit(output)
