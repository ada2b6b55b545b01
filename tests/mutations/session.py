"""Run a pytest session in a process forked from one that has imported torch already."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.mutations import imported_source
from tests.mutations.rooms import ROOT

OPTIONS = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=line", "--no-header"]
WARM = "import hypothesis.extra.numpy, torch, torch._dynamo\ndef test_torch_is_here(): pass\n"
SIMULATED_DEVICE = "tests/simulated_device/"
SITE = Path(__file__).parent / "site"


def warm_up() -> None:
    """Import what every session needs, as pytest would: hypothesis has its asserts rewritten."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False  # else pytest rewrites the asserts of each module each time
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SITE), str(ROOT)])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "test_warm.py")
        file.write_text(WARM)
        status = pytest.main(["-q", "-p", "no:bninvariants", "-c", os.devnull, str(file)])
    assert status == 0, "torch and hypothesis could not be imported"
    imported_source.install()
    gc.freeze()  # no session need look through torch's own objects again


class SeededTests:
    """Begin each test with the same random state, whichever tests run before it."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Set the seed."""
        sys.modules["torch"].manual_seed(0)


class ChosenTests(SeededTests):
    """Keep these tests of those collected, in this order, and end with the first that fails.

    Args:
        names: the tests.
        begun: the file into which to write the name of each that begins.
    """

    def __init__(self, names: list[str], begun: Path) -> None:
        self._rank = {name: rank for rank, name in enumerate(names)}
        self._begun = begun

    def pytest_configure(self, config: pytest.Config) -> None:
        """End with the first that fails."""
        config.option.maxfail = 1

    @pytest.hookimpl(tryfirst=True)  # then pytest joins tests that share a fixture's parameter
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the tests, and drop the others."""
        kept = [item for item in items if item.nodeid in self._rank]
        items[:] = sorted(kept, key=lambda item: self._rank[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Write down that a test begins."""
        with self._begun.open("a", encoding="utf-8") as file:
            file.write(f"{nodeid}\n")


class ReachedBlocks(SeededTests):
    """Tell probes which test runs, and note how long each takes and which fail."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._shared: dict[str, float] = {}  # how long fixtures of several tests took
        self._shared_now = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Name the test for the probes, and take its time."""
        imported_source.start_test(item.nodeid)
        start, self._shared_now = time.perf_counter(), 0.0
        result = yield
        own = time.perf_counter() - start - self._shared_now
        fixtures = getattr(item, "fixturenames", ())
        self.seconds[item.nodeid] = own + sum(self._shared.get(name, 0.0) for name in fixtures)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Iterator[None]:
        """Count what a fixture of a whole file reaches, and its time, for all the file's tests."""
        if fixturedef.scope == "function":
            return (yield)
        test, start = os.environ[imported_source.TEST], time.perf_counter()
        imported_source.start_test(test.partition("::")[0])
        result = yield
        imported_source.start_test(test)
        self._shared[fixturedef.argname] = seconds = time.perf_counter() - start
        self._shared_now += seconds
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that fails."""
        if report.failed:
            self.failed.append(report.nodeid)


@dataclass(kw_only=True)
class Job:
    """A function that runs in a process of its own, within a time."""

    name: str
    run: Callable[[], int]
    seconds: float
    output: Path


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended: its exit status, or None if it took too long."""

    job: Job
    status: int | None
    seconds: float


def run_all(jobs: Iterator[Job], workers: int) -> Iterator[Ending]:
    """Run jobs, a few at a time, and yield each as it ends."""
    running: dict[BaseProcess, tuple[Job, float]] = {}
    waiting = iter(jobs)
    while True:
        while len(running) < workers and (job := next(waiting, None)) is not None:
            running[_start(job)] = (job, time.monotonic())
        if not running:
            return
        wait([process.sentinel for process in running], timeout=1)
        for process, (job, start) in list(running.items()):
            seconds = time.monotonic() - start
            if process.is_alive() and seconds < job.seconds:
                continue
            status = None if process.is_alive() else process.exitcode
            _end(process)
            del running[process]
            yield Ending(job=job, status=status, seconds=seconds)


def _start(job: Job) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_run, args=(job,))
    process.start()
    return process


def _run(job: Job) -> None:
    os.setsid()  # so that what it starts can be ended with it
    output = os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    status = job.run()
    sys.stdout.flush()
    os._exit(status)


def _end(process: BaseProcess) -> None:
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def run_tests(names: list[str], plugin: object) -> int:
    """Run these tests, or files of tests, and return pytest's exit code, of the first that fails.

    A file for the simulated device has a process of its own, since torch keeps a device.
    """
    os.chdir(ROOT)
    files = dict.fromkeys(name.partition("::")[0] for name in names)
    alone = [[file] for file in files if file.startswith(SIMULATED_DEVICE)]
    together = [file for file in files if not file.startswith(SIMULATED_DEVICE)]
    first, *others = [files for files in (together, *alone) if files]
    if not others:
        return _run_files(first, plugin)
    statuses = (_run_in_fork(files, plugin) for files in (first, *others))
    return next(filter(None, statuses), 0)


def _run_in_fork(files: list[str], plugin: object) -> int:
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(_run_files(files, plugin))


def _run_files(files: list[str], plugin: object) -> int:
    if files[0].startswith(SIMULATED_DEVICE):
        os.environ["SIMULATED_DEVICE"] = "1"
    status = int(pytest.main([*OPTIONS, *files], plugins=[plugin]))
    sys.stdout.flush()
    return status
