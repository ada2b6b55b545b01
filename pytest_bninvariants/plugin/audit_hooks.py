"""`--bn-audit`: audit every test, and list leaks in the summary or fail the tests that leak."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from pytest_bninvariants.errors import FrozenStateChanged
from pytest_bninvariants.plugin.outcomes.raise_at_test import function_of, raise_at
from pytest_bninvariants.reporting.audit_summary import AuditTally
from pytest_bninvariants.reporting.verdict_text import render
from pytest_bninvariants.verdict import Verdict

if TYPE_CHECKING:
    from pytest_bninvariants.audit.auditor import Auditor, IdleWatcher

_NOT_FAILURES = (KeyboardInterrupt, GeneratorExit, FrozenStateChanged)
_UNEXPECTED = "Unexpected success"  # pytest's text for one of unittest
_auditor: pytest.StashKey[Auditor] = pytest.StashKey()
_findings = pytest.StashKey[dict[str, Any]]()


def register_audit(config: pytest.Config, mode: str) -> None:
    """Audit the tests of a session.

    Args:
        config: the session's configuration.
        mode: `report`, or `fail` to fail the tests that leak.
    """
    config.pluginmanager.register(_AuditHooks(fails=mode == "fail"), "bn-audit")


class _AuditHooks:
    """The hooks that audit one session."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails
        self._tally = AuditTally()
        self._standby: IdleWatcher | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        from pytest_bninvariants.audit import auditor

        if self._standby is None:
            self._standby = auditor.IdleWatcher()
            self._standby.start()
        item.stash[_auditor] = auditor.Auditor()
        item.stash[_auditor].start()
        try:
            return (yield)
        except BaseException:
            _stop(item)
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        __tracebackhide__ = True
        try:
            result = yield
        except BaseException as error:
            self._add_note(_stop(item), error)
            raise
        verdicts = _stop(item)
        failures = getattr(item, "_excinfo", None) or []  # those of a TestCase's method
        for excinfo in failures:
            self._add_note(verdicts, excinfo.value)
        if verdicts and self._fails and (not failures or _was_expected_to_fail(failures)):
            _fail(item, verdicts)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        _stop(item)  # if the call was skipped, as with --setup-only

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        findings = item.stash.get(_findings, None)
        if findings is not None:
            del item.stash[_findings]
            vars(report)["bn_audit"] = findings  # plain data, which reports take across xdist
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        findings = getattr(report, "bn_audit", None)
        if findings is not None:
            self._tally.add(report.nodeid, findings)

    def pytest_sessionfinish(self) -> None:
        if self._standby is not None:
            self._standby.stop()
            self._standby = None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if terminalreporter.config.getoption("collectonly"):
            return
        terminalreporter.section("bn audit")
        verbose = terminalreporter.config.get_verbosity() > 0
        for line in self._tally.lines(verbose=verbose):
            terminalreporter.line(line)

    def _add_note(self, verdicts: tuple[Verdict, ...], error: BaseException) -> None:
        if verdicts and self._fails and not isinstance(error, _NOT_FAILURES):
            error.add_note(f"\nwhen this was raised, frozen layers had moved:\n{render(verdicts)}")


def _was_expected_to_fail(failures: list[pytest.ExceptionInfo[BaseException]]) -> bool:
    """Tell whether a TestCase's method failed only because it was expected to fail."""
    return [str(excinfo.value) for excinfo in failures] == [_UNEXPECTED]


def _fail(item: Any, verdicts: tuple[Verdict, ...]) -> None:
    __tracebackhide__ = True
    failure = FrozenStateChanged(*verdicts)
    if getattr(item, "_excinfo", None):
        item._excinfo.clear()
        item.addExpectedFailure(item.instance, (type(failure), failure, None))
    else:
        function = function_of(item)
        raise_at(function, failure, getattr(item, "funcargs", None) or {})


def _stop(item: pytest.Item) -> tuple[Verdict, ...]:
    """End a test's audit, if it has not ended, and keep its findings for the report.

    Return the verdicts that do not hold.
    """
    auditor = item.stash.get(_auditor, None)
    if auditor is None:
        return ()
    del item.stash[_auditor]
    verdicts = auditor.stop()
    causes = [(verdict.model, asdict(cause)) for verdict in verdicts for cause in verdict.causes]
    counts = {"layers": auditor.layers, "frozen": auditor.frozen}
    item.stash[_findings] = {**counts, "causes": causes}
    return tuple(verdict for verdict in verdicts if not verdict.holds)
