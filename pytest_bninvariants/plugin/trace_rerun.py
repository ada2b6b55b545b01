"""Run a test that broke a guard again, under tracing, and report who wrote to the model.

The first run decides the outcome; the second only adds the writer to its report, and no other
plugin sees it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from pytest_bninvariants.guard_registry import ignore_verdicts
from pytest_bninvariants.invariants.frozen import earlier_runs
from pytest_bninvariants.plugin.options import may_run_again
from pytest_bninvariants.plugin.outcomes.exceptions import verdicts_in
from pytest_bninvariants.reporting.trace_text import compare_runs
from pytest_bninvariants.run_config import Trace, override
from pytest_bninvariants.verdict import Verdict

_TITLE = "who wrote it: a second run, under --bn-trace"
_INSTEAD = "--bn-trace=same-run traces the first run"


@dataclass(slots=True)
class _RunReports:
    """The reports of one run of a test.

    Args:
        broken: reports of failures, each with the verdicts of the broken guards.
        has_subtests: whether the test has subtests, which pytest reports by themselves.
    """

    broken: list[tuple[pytest.TestReport, tuple[Verdict, ...]]] = field(default_factory=list)
    has_subtests: bool = False

    @property
    def verdicts(self) -> list[Verdict]:
        """Return all verdicts."""
        return [verdict for _, verdicts in self.broken for verdict in verdicts]


class TraceRerunner:
    """The hooks that run tests."""

    def __init__(self) -> None:
        self._run: _RunReports | None = None

    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        """Run a test, and once more if it breaks a guard."""
        if _another_plugin_reruns(item):
            return None  # that plugin's runs are traced as they are
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        with override(trace=None):
            reports, first = self._run_once(item, nextitem)
        try:
            if first.broken:
                self._explain(first, item, nextitem)
        finally:
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _run_once(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> tuple[list[pytest.TestReport], _RunReports]:
        self._run = run = _RunReports()
        try:
            return runtestprotocol(item, log=False, nextitem=nextitem), run
        finally:
            self._run = None

    def _explain(self, first: _RunReports, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        if first.has_subtests:
            text = f"a test with subtests is not run again; {_INSTEAD}"
        else:
            trace = Trace(names=_sought_names(first.verdicts))
            with override(trace=trace), earlier_runs.remembering(None), ignore_verdicts():
                reports, second = self._run_once(item, nextitem)
            ended = next((report for report in reports if not report.passed), None)
            text = "" if second.broken else _end_of_unbroken_run(ended)
        for report, verdicts in first.broken:
            verbose = item.config.get_verbosity() > 0
            _add_section(report, text or compare_runs(verdicts, second.verdicts, verbose=verbose))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Record the reports of broken guards."""
        report = yield
        verdicts = _traceable_verdicts(call.excinfo.value if call.excinfo else None)
        if self._run is not None and report.failed and verdicts:
            self._run.broken.append((report, verdicts))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note subtests, which are reported while a test runs."""
        if self._run is not None:
            self._run.has_subtests |= hasattr(report, "context")


def _traceable_verdicts(error: BaseException | None) -> tuple[Verdict, ...]:
    """Return the verdicts in an exception whose guards a write can break."""
    return tuple(verdict for verdict in verdicts_in(error) if verdict.writes is not None)


def _sought_names(verdicts: list[Verdict]) -> frozenset[str] | None:
    """Return the tensors whose writers are sought; None for all, if a verdict is on outputs."""
    if any(verdict.column != "tensor" for verdict in verdicts):
        return None
    return frozenset(name for verdict in verdicts for name in verdict.changed_tensors)


def _another_plugin_reruns(item: pytest.Item) -> bool:
    config = item.config
    if not may_run_again(config):
        return False
    requested = config.getoption("reruns", None) or item.get_closest_marker("flaky")
    by_ini = config.pluginmanager.hasplugin("rerunfailures") and config.getini("reruns")
    return bool(requested or by_ini)


def _end_of_unbroken_run(ended: pytest.TestReport | None) -> str:
    """Return how a second run ended that did not break the guard."""
    if ended is None:
        return f"the second run broke no guard, and passed; {_INSTEAD}"
    crash = getattr(ended.longrepr, "reprcrash", None)
    message = str(crash.message if crash else ended.longrepr).partition("\n")[0]
    return f"the second run broke no guard, and {ended.outcome} in its {ended.when}: {message}"


def _add_section(report: pytest.TestReport, text: str) -> None:
    longrepr: Any = report.longrepr
    if hasattr(longrepr, "addsection"):
        longrepr.addsection(_TITLE, text)
    else:
        report.longrepr = f"{longrepr}\n{_TITLE}\n{text}"
