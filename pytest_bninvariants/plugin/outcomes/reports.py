"""Report a guard's failure: always as failed, and with its headline first."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_bninvariants.errors import FrozenStateChanged, GateError
from pytest_bninvariants.plugin.outcomes.exceptions import OUR_ERRORS, gate_error_in


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


def report_as_failed(item: pytest.Item, report: pytest.TestReport, error: GateError) -> None:
    """Report a gate error as failed, whatever xfail or expectedFailure made of it."""
    if report.failed and not hasattr(report, "wasxfail"):
        return
    report.outcome = "failed"
    if hasattr(report, "wasxfail"):
        del report.wasxfail
    excinfo = pytest.ExceptionInfo.from_exception(error)
    report.longrepr = item.repr_failure(excinfo)


def strip_prefix(report: pytest.TestReport) -> None:
    """Begin a failure's text with the headline, without the exception's name before it.

    The summary gets only the headline: on CI pytest prints the whole message there, which would
    show the verdict a second time.
    """
    longrepr: Any = report.longrepr
    crash = getattr(longrepr, "reprcrash", None)
    for kind in (FrozenStateChanged, *OUR_ERRORS):
        prefix = f"{kind.__module__}.{kind.__qualname__}: "
        if crash is not None and crash.message.startswith(prefix):
            crash.message = crash.message.removeprefix(prefix).partition("\n")[0]
            for entry in longrepr.reprtraceback.reprentries:
                entry.lines = [_without(line, prefix) for line in entry.lines]


def _without(line: str, prefix: str) -> str:
    mark, _, rest = line.partition(prefix)
    return f"{mark}{rest}" if rest and mark.strip() == "E" else line
