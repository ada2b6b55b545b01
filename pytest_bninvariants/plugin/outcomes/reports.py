"""Report a guard's failure: always as failed, and with its headline first."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_bninvariants.errors import FrozenStateChanged, GateError, InvariantBroken, LawBroken
from pytest_bninvariants.plugin.outcomes.exceptions import gate_error_in


class RankFailure(Exception):
    """A failure of a test's ranks that none of them could report: one died, or was stopped."""


_STARTS = {
    FrozenStateChanged: "",
    InvariantBroken: "",
    LawBroken: "",
    RankFailure: "",
    GateError: "cannot judge: ",
}
_IS_OURS = "bninvariants_failed"
"""The attribute of a report whose failure is a guard's; it crosses processes with the report."""


def never_expect_gate_errors(item: Any) -> None:
    """Make unittest's expectedFailure treat a gate error as an error.

    Args:
        item: the pytest item of a TestCase's method, which is unittest's result object too.
    """
    expected, error = item.addExpectedFailure, item.addError

    def add(testcase: Any, excinfo: Any, *args: Any) -> None:
        report = expected if gate_error_in(excinfo[1]) is None else error
        report(testcase, excinfo, *args)

    item.addExpectedFailure = add


def report_as_failed(item: pytest.Item, report: pytest.TestReport, error: BaseException) -> None:
    """Report an error as failed, whatever xfail or expectedFailure made of it."""
    if report.failed and not hasattr(report, "wasxfail"):
        return
    report.outcome = "failed"
    if hasattr(report, "wasxfail"):
        del report.wasxfail
    excinfo = pytest.ExceptionInfo.from_exception(error)
    report.longrepr = item.repr_failure(excinfo)


def strip_prefix(report: pytest.TestReport) -> None:
    """Begin a failure's text with the headline, without the exception's name before it.

    A gate error says first that it is one, since its name is gone. The summary gets only the
    headline: on CI pytest prints the whole message there, which would show the verdict twice.
    """
    longrepr: Any = report.longrepr
    crash = getattr(longrepr, "reprcrash", None)
    for kind, start in _STARTS.items():
        prefix = f"{kind.__module__}.{kind.__qualname__}: "
        if crash is not None and crash.message.startswith(prefix):
            setattr(report, _IS_OURS, True)
            crash.message = start + crash.message.removeprefix(prefix).partition("\n")[0]
            for entry in longrepr.reprtraceback.reprentries:
                entry.lines = [_with_start(line, prefix, start) for line in entry.lines]


def _with_start(line: str, prefix: str, start: str) -> str:
    mark, _, rest = line.partition(prefix)
    return f"{mark}{start}{rest}" if rest and mark.strip() == "E" else line


class OneLinePerFailure:
    """The hook for `--tb=line`, under which the terminal shows a failure's location and headline.

    pytest would print the exception's text above that line.
    """

    @pytest.hookimpl(trylast=True)  # once the text is in junit's report and the like
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Leave only the location and the headline of a guard's failure."""
        if report.when == "call" and report.failed and hasattr(report, _IS_OURS):
            longrepr: Any = report.longrepr
            for entry in longrepr.reprtraceback.reprentries:
                entry.lines = []
