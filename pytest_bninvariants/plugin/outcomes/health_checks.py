"""Say what to write where a health check of hypothesis keeps a marked test from running."""

from __future__ import annotations

import re

import pytest

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.plugin.markers import guard_marks
from pytest_bninvariants.plugin.outcomes.raise_at_test import raise_at

_FUNCTION_SCOPED = re.compile(r"uses a function-scoped fixture ('[^']*')")


def explain_health_check(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Turn the health check on function-scoped fixtures into a gate error, if a test is marked.

    It comes before the guards of markers are made, which could judge nothing then.
    """
    error = call.excinfo.value if call.excinfo else None
    if type(error).__name__ != "FailedHealthCheck":
        return
    found = _FUNCTION_SCOPED.search(str(error))
    if not (found and guard_marks(item)):
        return
    gate = GateError(
        f"hypothesis runs no example, since {found[1]} is a function-scoped fixture: keep it in a "
        "wider scope, with @pytest.fixture(scope='module'); the guard puts the model back after "
        "each failing example"
    )
    try:
        raise_at(item.obj, gate, {})  # type: ignore[attr-defined]
    except GateError as raised:
        call.excinfo = pytest.ExceptionInfo.from_exception(raised)
