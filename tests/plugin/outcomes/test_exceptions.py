"""What is reported of an exception."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_bninvariants import GateError, InvariantBroken, Verdict, frames
from pytest_bninvariants.errors import DriftNote
from pytest_bninvariants.plugin.outcomes.exceptions import (
    drop_notes_about_us,
    gate_error_in,
    make_presentable,
    verdicts_in,
)
from tests.plugin.sessions import Sessions

OURS = f"        {frames.PACKAGE}plugin/guarded_call.py:164"
TITLE = ["Explanation:", "    These lines were always and only run by failing test cases:"]
MORE = "        (and 23 more with settings.verbosity >= verbose)"


@pytest.mark.parametrize(
    ("explanation", "left"),
    [
        ([*TITLE, OURS, MORE], []),
        ([*TITLE, OURS, OURS, "        train.py:7", MORE], [*TITLE, "        train.py:7", MORE]),
        ([*TITLE, "        train.py:7"], [*TITLE, "        train.py:7"]),
        ([], []),
    ],
)
@pytest.mark.parametrize("joined", [False, True], ids=["lines", "one note"])
def test_an_explanation_of_nothing_but_our_lines_goes_whole(
    explanation: list[str], left: list[str], joined: bool
) -> None:
    error = ValueError("own")
    example = ["Failing test case: test_it(", "    size=10,", ")"]
    for note in ["\n".join(explanation)] if joined and explanation else explanation:
        error.add_note(note)
    error.__notes__ = [*example, *getattr(error, "__notes__", [])]
    drop_notes_about_us(error)
    assert "\n".join(error.__notes__).splitlines() == [*example, *left]


def test_an_exception_whose_traceback_was_cleared_is_left_alone() -> None:
    error = ValueError("own")
    excinfo = pytest.ExceptionInfo.from_exc_info((ValueError, error, None))  # type: ignore[arg-type]
    item: Any = SimpleNamespace(_excinfo=[excinfo])
    call: Any = SimpleNamespace(excinfo=None)
    make_presentable(item, call, verbose=False)
    assert item._excinfo == [excinfo]


@pytest.mark.parametrize("notes", ["None", "3", "[1, 'mine']", "('mine',)"])
def test_notes_that_are_no_list_of_texts_are_left_to_pytest(sessions: Sessions, notes: str) -> None:
    session = sessions.run(f"""
        def test_fails():
            error = ValueError("own")
            error.__notes__ = {notes}
            raise error

        def test_passes():
            pass
    """)
    assert session.outcomes == {"test_fails": "failed", "test_passes": "passed"}


def verdict(guard: str) -> Verdict:
    return Verdict(
        guard=guard,
        noun="layer",
        model="Net",
        source="",
        layers=1,
        tensors=None,
        changes=(),
        causes=(),
    )


def noted(error: Exception, guard: str) -> Exception:
    error.add_note(DriftNote("a note", (verdict(guard),)))
    return error


def test_gate_errors_and_verdicts_are_found_in_groups_within_groups_and_in_notes() -> None:
    gate, broken = GateError("nothing ran"), InvariantBroken(verdict("inner"))
    deep = ExceptionGroup("outer", [ValueError(), ExceptionGroup("inner", [broken, gate])])
    error = noted(ExceptionGroup("all", [deep, noted(KeyError(), "noted")]), "on top")
    assert gate_error_in(error) is gate
    assert gate_error_in(gate) is gate
    assert gate_error_in(noted(ValueError(), "noted")) is None
    assert gate_error_in(None) is None
    assert [each.guard for each in verdicts_in(error)] == ["on top", "inner", "noted"]
    assert verdicts_in(None) == ()
