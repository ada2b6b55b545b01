"""Other plugins receive the verdict of each guard, once, and what they raise is told as theirs."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.plugin.sessions import CONFTEST, Sessions

HOOK = """
import json
import os
import pytest

def pytest_bninvariants_verdict(item, verdict):
    told = {
        "test": item.name,
        "rank": os.environ.get("RANK"),
        "worker": os.environ.get("PYTEST_XDIST_WORKER"),
        **verdict.to_dict(),
    }
    with open(os.environ["VERDICTS"], "a") as file:
        print(json.dumps(told), file=file)
    BODY
"""

SUITE = """
    @pytest.mark.frozen_bn("bn1", trains="fc")
    def test_marked(model):
        drift(model)

    def test_in_blocks(model, frozen_bn):
        with frozen_bn(model):
            hold(model)
        with pytest.raises(AssertionError), frozen_bn(model):
            drift(model)

    @pytest.fixture
    def guarded(model, frozen_bn):
        with frozen_bn(model, "bn1"):
            hold(model)
        yield model
        with frozen_bn(model, "bn2"):
            hold(model)

    def test_in_a_fixture(guarded):
        pass

    def test_at_once(model, batch_invariant, accumulates):
        batch_invariant(model, batch(), examples=2)
        accumulates(model, batch(), 2, loss=lambda model, x: model(x).mean())

    def test_without():
        pass
"""
EXPECTED = [
    ("test_marked", "frozen_bn('bn1', trains='fc')", False),
    ("test_marked", "trains('fc')", False),
    ("test_in_blocks", "frozen_bn()", True),
    ("test_in_blocks", "frozen_bn()", False),
    ("test_in_a_fixture", "frozen_bn('bn1')", True),
    ("test_in_a_fixture", "frozen_bn('bn2')", True),
    ("test_at_once", "batch_invariant()", True),
    ("test_at_once", "accumulates(k=2)", True),
]


class Hooked:
    """Sessions whose plugin writes down what it receives."""

    def __init__(self, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sessions = sessions
        self._file = sessions.folder / "verdicts.jsonl"
        monkeypatch.setenv("VERDICTS", str(self._file))

    def write(self, body: str = "pass") -> None:
        self.sessions.pytester.makeconftest(CONFTEST + HOOK.replace("BODY", body))

    def take(self) -> list[dict[str, Any]]:
        text = self._file.read_text() if self._file.exists() else ""
        self._file.unlink(missing_ok=True)
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def hooked(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> Hooked:
    found = Hooked(sessions, monkeypatch)
    found.write()
    return found


def told(verdicts: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    return [(each["test"], each["guard"], each["holds"]) for each in verdicts]


def test_each_guard_that_ended_is_told_once(hooked: Hooked) -> None:
    hooked.sessions.run(SUITE)
    assert told(hooked.take()) == EXPECTED


def test_under_xdist_the_worker_is_told(hooked: Hooked) -> None:
    hooked.sessions.run(SUITE, "-n2")
    verdicts = hooked.take()
    assert sorted(told(verdicts)) == sorted(EXPECTED)
    assert {each["worker"] for each in verdicts} <= {"gw0", "gw1"}


def test_each_rank_is_told_of_its_own(hooked: Hooked) -> None:
    hooked.sessions.run(
        """
        from torch import distributed

        @pytest.mark.ranks(2)
        @pytest.mark.frozen_bn
        def test_on_ranks(model):
            (drift if distributed.get_rank() == 1 else hold)(model)
        """,
    )
    assert {(each["rank"], each["holds"]) for each in hooked.take()} == {("0", True), ("1", False)}


def test_a_second_run_that_looks_for_the_writer_is_not_told(hooked: Hooked) -> None:
    hooked.sessions.run(SUITE, "--bn-trace")
    assert told(hooked.take()) == EXPECTED


def test_each_run_of_a_test_that_is_run_again_is_told(hooked: Hooked) -> None:
    hooked.sessions.run(
        """
        drifts = iter([True])

        @pytest.mark.frozen_bn
        def test_flaky(model):
            (drift if next(drifts, False) else hold)(model)
        """,
        "--reruns=2",
    )
    assert [each["holds"] for each in hooked.take()] == [False, True]


def test_each_example_is_told_and_a_block_that_raised_if_it_says_something(hooked: Hooked) -> None:
    hooked.sessions.run(
        """
        from hypothesis import given, settings, strategies as st

        @settings(max_examples=4, deadline=None, database=None)
        @given(size=st.integers(2, 1000))
        @pytest.mark.frozen_bn
        def test_examples(kept, size):
            hold(kept, size)

        def test_raises(model, frozen_bn, bn_updates):
            with pytest.raises(KeyError), frozen_bn(model):
                drift(model)
                raise KeyError

            with pytest.raises(KeyError), bn_updates(model, "*"):
                raise KeyError
        """,
    )
    verdicts = told(hooked.take())
    assert verdicts.count(("test_examples", "frozen_bn()", True)) == 4
    assert verdicts[4:] == [("test_raises", "frozen_bn()", False)]


RAISING = """
    if item.name == "test_it" and not verdict.holds:
        raise ValueError("W&B is offline")
"""


@pytest.mark.parametrize("marks", ["", "@pytest.mark.xfail"])
def test_what_a_hook_raises_is_an_error_beside_the_tests_own_outcome(
    hooked: Hooked, marks: str
) -> None:
    hooked.write(RAISING)
    session = hooked.sessions.run(
        f"""
        {marks}
        @pytest.mark.frozen_bn
        def test_it(model):
            drift(model)

        @pytest.mark.frozen_bn
        def test_holds(model):
            hold(model)
        """,
    )
    own = "xfailed" if marks else "failed"
    assert session.outcomes == {"test_it": f"{own} error", "test_holds": "passed"}
    assert "ValueError: W&B is offline" in session.output
    note = re.search(
        r"raised by pytest_bninvariants_verdict of (\S+) for frozen_bn", session.output
    )
    assert note is not None
    assert note[1].endswith("conftest.py")


def test_errors_of_several_verdicts_are_all_told_and_a_teardowns_own_wins(hooked: Hooked) -> None:
    hooked.write('raise ValueError(f"of {verdict.guard}")')
    session = hooked.sessions.run(
        """
        @pytest.fixture
        def raises():
            yield
            raise KeyError("own")

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_it(model):
            hold(model)

        @pytest.mark.frozen_bn("bn1")
        def test_own(model, raises):
            hold(model)
        """,
    )
    assert session.outcomes == {"test_it": "passed error", "test_own": "passed error"}
    assert "ValueError: of frozen_bn('bn1')" in session.texts["test_it"]
    assert "ValueError: of frozen_bn('bn2')" in session.texts["test_it"]
    assert "KeyError: 'own'" in session.texts["test_own"]
    assert "ValueError: of frozen_bn('bn1')" in session.texts["test_own"]


def test_an_implementation_with_another_argument_is_refused_by_its_name(hooked: Hooked) -> None:
    hooked.sessions.pytester.makeconftest("def pytest_bninvariants_verdict(itm): pass")
    hooked.sessions.pytester.makepyfile(test_it="def test_it(): pass")
    result = hooked.sessions.bare(alone=True)
    assert result.ret != pytest.ExitCode.OK
    text = result.stdout.str() + result.stderr.str()
    assert "pytest_bninvariants_verdict" in text
    assert "itm" in text
