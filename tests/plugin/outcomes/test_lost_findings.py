"""A verdict is lost only when the test's own report tells it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.plugin.sessions import Sessions

IMPORTS = """
import asyncio
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor

from pytest_bninvariants import FrozenStateChanged, GateError, InvariantBroken
from pytest_bninvariants import frozen_bn as guard, trains


def step(model, *modules):
    with guard(model, *modules):
        drift(model)
"""


@pytest.fixture(autouse=True)
def _no_tasks_are_left() -> Iterator[None]:
    """Free tasks that nobody awaited here: asyncio logs them, in whatever test frees them."""
    yield
    gc.collect()


def test_the_exception_of_a_block_that_the_test_catches_does_not_hide_the_verdict(
    sessions: Sessions,
) -> None:
    session = sessions.run(
        """
        def early(model, run):
            with guard(model):
                run(model)
                raise ValueError("stop early")

        def test_raises_drifts(model):
            with pytest.raises(ValueError):
                early(model, drift)

        def test_raises_holds(model):
            with pytest.raises(ValueError):
                early(model, hold)

        def test_a_call_drifts(model):
            pytest.raises(ValueError, early, model, drift)

        def test_an_exit_drifts(model):
            with pytest.raises(SystemExit), guard(model):
                drift(model)
                raise SystemExit(0)

        def test_in_a_thread_drifts(model):
            with ThreadPoolExecutor() as pool, pytest.raises(ValueError):
                pool.submit(early, model, drift).result()

        class TestOfUnittest(unittest.TestCase):
            def test_drifts(self):
                with self.assertRaises(ValueError):
                    early(Net(), drift)

            def test_holds(self):
                with self.assertRaises(FrozenStateChanged):
                    step(Net())

        @pytest.fixture
        def prepared(model):
            with pytest.raises(ValueError):
                early(model, drift)

        def test_in_a_fixture_drifts(prepared):
            pass
    """,
        before=IMPORTS,
    )
    session.tells_apart()
    said = session.says("test_raises_drifts")
    assert "note ValueError ended its block, and was caught outside of the guard" in said


def test_a_guard_that_asks_for_a_change_judges_a_block_whose_exception_is_caught(
    sessions: Sessions,
) -> None:
    session = sessions.run(
        """
        def train(model):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model.train()(batch()).square().mean().backward()
            optimizer.step()

        @pytest.mark.parametrize("step", [train, hold])
        def test_it(model, step):
            with pytest.raises(ValueError), trains(model, "fc"):
                step(model)
                raise ValueError("stop early")
    """,
        before=IMPORTS,
    )
    assert session.outcomes == {"test_it[train]": "passed", "test_it[hold]": "failed"}
    assert "1 of 1 trainable part did not train" in session.first_line("test_it[hold]")


def test_what_the_report_tells_is_not_told_twice(sessions: Sessions) -> None:
    session = sessions.run(
        """
        from hypothesis import assume, given, settings, strategies as st

        def test_own(model):
            with guard(model):
                drift(model)
                raise ValueError("own")

        def test_own_with_a_cause(model):
            try:
                with guard(model):
                    drift(model)
                    raise ValueError("first")
            except ValueError as error:
                raise RuntimeError("own") from error

        def test_own_in_a_group(model):
            try:
                with guard(model):
                    drift(model)
                    raise ValueError("first")
            except ValueError as error:
                raise ExceptionGroup("own", [error]) from None

        def test_of_the_same_guard_again(model):
            for last in (False, True):
                try:
                    with guard(model):
                        drift(model)
                        raise ValueError("own")
                except ValueError:
                    if last:
                        raise

        def test_skip(model):
            with guard(model):
                drift(model)
                pytest.skip("not here")

        @unittest.expectedFailure
        class TestOfUnittest(unittest.TestCase):
            def test_own(self):
                model = Net()
                with guard(model):
                    drift(model)
                    raise ValueError("own")

        @settings(database=None, deadline=None, max_examples=20)
        @given(size=st.integers(2, 9))
        def test_given(size):
            model = Net()
            with guard(model):
                if size > 5:
                    drift(model)
                    assume(False)
                hold(model)
    """,
        before=IMPORTS,
    )
    assert session.outcomes == {
        "test_own": "failed",
        "test_own_with_a_cause": "failed",
        "test_own_in_a_group": "failed",
        "test_of_the_same_guard_again": "failed",
        "test_skip": "skipped",
        "TestOfUnittest::test_own": "xfailed",
        "test_given": "passed",
    }
    own = ("test_own", "test_own_with_a_cause", "test_own_in_a_group")
    for name in (*own, "test_of_the_same_guard_again"):
        assert session.texts[name].count("2 of 2 frozen BN layers changed") == 1


def test_a_lost_verdict_is_noted_on_the_tests_own_failure(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def test_own(model):
            with pytest.raises(ValueError), guard(model):
                drift(model)
                raise ValueError("stop early")
            raise RuntimeError("own")

        def stopped(model):
            with guard(model):
                drift(model)
                raise ValueError("stop early")

        def test_hidden(model):
            try:
                stopped(model)
            except ValueError:
                raise RuntimeError("own") from None

        def test_behind_another(model):
            try:
                stopped(model)
            except ValueError:
                raise RuntimeError("own") from KeyError("other")

        class TestOfUnittest(unittest.TestCase):
            def test_own(self):
                model = Net()
                with self.assertRaises(ValueError), guard(model):
                    drift(model)
                    raise ValueError("stop early")
                raise RuntimeError("own")

        def test_after(model):
            hold(model)
    """,
        before=IMPORTS,
    )
    own = ("test_own", "test_hidden", "test_behind_another", "TestOfUnittest::test_own")
    assert session.outcomes == {**dict.fromkeys(own, "failed"), "test_after": "passed"}
    told = "before this was raised, a guard had found: 2 of 2 frozen BN layers changed"
    for name in own:
        assert session.first_line(name) == "RuntimeError: own"
        assert told in session.says(name)


def test_a_verdict_of_the_teardown_is_not_lost(sessions: Sessions) -> None:
    session = sessions.run(
        """
        async def forever(model):
            with guard(model):
                drift(model)
                await asyncio.sleep(60)

        @pytest.mark.asyncio
        async def test_a_task(model):
            asyncio.create_task(forever(model))
            await asyncio.sleep(0)

        @pytest.fixture
        def steps(model):
            def losses():
                with guard(model):
                    yield drift(model)

            steps = losses()
            yield steps
            steps.close()

        def test_a_generator(steps):
            next(steps)

        @pytest.fixture
        def caught(model):
            yield
            with pytest.raises(ValueError), guard(model):
                drift(model)
                raise ValueError("stop early")

        def test_a_fixture(caught):
            pass

        def test_after(model):
            hold(model)
    """,
        before=IMPORTS,
    )
    assert session.outcomes == {
        "test_a_task": "passed error",
        "test_a_generator": "passed error",
        "test_a_fixture": "passed error",
        "test_after": "passed",
    }
    for name in session.texts:
        assert "2 of 2 frozen BN layers changed" in session.first_line(name)


def test_a_setup_that_fails_leaves_nothing_for_the_next_test(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.fixture
        def failing(model):
            with pytest.raises(ValueError), guard(model):
                drift(model)
                raise ValueError("stop early")
            raise RuntimeError("own")

        def test_it(failing):
            pass

        def test_after(model):
            hold(model)
    """,
        before=IMPORTS,
    )
    assert session.outcomes == {"test_it": "error", "test_after": "passed"}


def test_xfail_may_expect_a_lost_violation(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.xfail(strict=True, raises=AssertionError)
        def test_it(model):
            with ThreadPoolExecutor() as pool:
                pool.submit(step, model)
    """,
        before=IMPORTS,
    )
    assert session.outcomes == {"test_it": "xfailed"}
