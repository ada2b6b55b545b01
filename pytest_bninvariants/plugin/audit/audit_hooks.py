"""`--bn-audit`: audit every test, and list leaks in the summary or fail the tests that leak."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_bninvariants.audit_rules import AUDIT_RULES, RuleChoice
from pytest_bninvariants.errors import FrozenStateChanged, InvariantBroken
from pytest_bninvariants.plugin.audit.expected_findings import ExpectedFindings, write_expected
from pytest_bninvariants.plugin.options import Settings
from pytest_bninvariants.plugin.outcomes.raise_at_test import function_of, raise_at
from pytest_bninvariants.reporting.audit_summary import AuditTally
from pytest_bninvariants.reporting.verdict_text import render
from pytest_bninvariants.verdict import Verdict

if TYPE_CHECKING:
    from pytest_bninvariants.audit.auditor import Auditor
    from pytest_bninvariants.audit.findings.finding_log import RuleVerdict
    from pytest_bninvariants.audit.idle_watcher import IdleWatcher

_NOT_FAILURES = (KeyboardInterrupt, GeneratorExit, InvariantBroken)
_UNEXPECTED = "Unexpected success"  # pytest's text for one of unittest
_auditor: pytest.StashKey[Auditor] = pytest.StashKey()
_findings = pytest.StashKey[dict[str, Any]]()


def register_audit(config: pytest.Config, settings: Settings) -> None:
    """Audit the tests of a session.

    Args:
        config: the session's configuration.
        settings: what the options say.

    Raises:
        pytest.UsageError: if the file of expected findings cannot be read.
    """
    config.pluginmanager.register(_AuditHooks(settings), "bn-audit")


class _AuditHooks:
    """The hooks that audit one session."""

    def __init__(self, settings: Settings) -> None:
        self._fails = settings.bn_audit == "fail"
        self._rules = settings.bn_audit_rules
        self._expected = ExpectedFindings.from_file(settings.bn_audit_xfails)
        self._write_to = settings.bn_audit_write_xfails
        self._tally = AuditTally()
        self._standby: IdleWatcher | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        from pytest_bninvariants.audit.auditor import Auditor
        from pytest_bninvariants.audit.idle_watcher import IdleWatcher

        if self._standby is None:
            self._standby = IdleWatcher()
            self._standby.start()
        is_expected = partial(self._expected.expects, item.nodeid)
        auditor = Auditor(self._rules.all, is_expected, self._standby.held)
        item.stash[_auditor] = auditor
        auditor.start()
        try:
            return (yield)
        except BaseException:
            self._stop(item)
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        __tracebackhide__ = True
        try:
            result = yield
        except BaseException as error:
            self._add_note(self._stop(item), error)
            raise
        verdicts = self._stop(item)
        failures = getattr(item, "_excinfo", None) or []  # those of a TestCase's method
        for excinfo in failures:
            self._add_note(verdicts, excinfo.value)
        if verdicts and self._fails and (not failures or _was_expected_to_fail(failures)):
            _fail(item, verdicts)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self._stop(item)  # if the call was skipped, as with --setup-only

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
            whole = report.when == "call" and report.passed
            self._expected.note(report.nodeid, findings["expected"], whole=whole)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._expected.gone and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
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
        for gone in self._expected.gone:
            name = f"{gone.test}[{gone.finding}]"
            terminalreporter.line(f"{gone.place}: {name} is no longer found: remove the line")
        if self._write_to is not None and not hasattr(terminalreporter.config, "workerinput"):
            write_expected(self._write_to, self._tally.ids(), self._expected)
            terminalreporter.line(f"{self._write_to} now expects the findings of this run")

    def _add_note(self, verdicts: tuple[Verdict, ...], error: BaseException) -> None:
        if verdicts and self._fails and not isinstance(error, _NOT_FAILURES):
            error.add_note(f"\nwhen this was raised, --bn-audit had found:\n{render(verdicts)}")

    def _stop(self, item: pytest.Item) -> tuple[Verdict, ...]:
        """End a test's audit, if it has not ended, and keep its findings for the report.

        Return the verdicts that fail a test.
        """
        auditor = item.stash.get(_auditor, None)
        if auditor is None:
            return ()
        del item.stash[_auditor]
        found = auditor.stop()
        item.stash[_findings] = {
            "ran": auditor.ran,
            "layers": auditor.layers,
            "frozen": auditor.frozen,
            "expected": list(auditor.expected),
            "findings": [_as_data(each, self._rules) for each in found],
        }
        return tuple(each.verdict for each in found if each.rule in self._rules.failing)


def _was_expected_to_fail(failures: list[pytest.ExceptionInfo[BaseException]]) -> bool:
    """Tell whether a TestCase's method failed only because it was expected to fail."""
    return [str(excinfo.value) for excinfo in failures] == [_UNEXPECTED]


def _rule_of(verdict: Verdict) -> str:
    return verdict.guard.split()[-1]


def _fail(item: Any, verdicts: tuple[Verdict, ...]) -> None:
    __tracebackhide__ = True
    of_frozen = any(AUDIT_RULES[rule].marker == "frozen_bn" for rule in map(_rule_of, verdicts))
    failure = (FrozenStateChanged if of_frozen else InvariantBroken)(*verdicts)
    if getattr(item, "_excinfo", None):
        item._excinfo.clear()
        item.addExpectedFailure(item.instance, (type(failure), failure, None))
    else:
        function = function_of(item)
        raise_at(function, failure, getattr(item, "funcargs", None) or {})


def _as_data(found: RuleVerdict, rules: RuleChoice) -> dict[str, Any]:
    """Return what a rule found as plain data, which reports take across processes."""
    return {
        "rule": found.rule,
        "fails": found.rule in rules.failing,
        "ids": list(found.ids),
        "marker": found.marker,
        "verdict": found.verdict.to_dict(),
    }
