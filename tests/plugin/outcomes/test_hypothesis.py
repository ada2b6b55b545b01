"""Tests under @given: each example is a step of its own."""

from __future__ import annotations

import pytest

from tests.plugin.outcomes.given_tests import HYPOTHESIS, smallest
from tests.plugin.sessions import Sessions

WAYS = {
    "a function": """
        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_holds(kept, size):
            hold(kept, size)

        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_drifts(kept, size):
            drift_above(7, kept, size)
    """,
    "a function with its decorators the other way round": """
        @calm
        @given(size=sizes)
        @pytest.mark.frozen_bn
        def test_holds(kept, size):
            hold(kept, size)

        @given(size=sizes)
        @calm
        @pytest.mark.frozen_bn
        def test_drifts(kept, size):
            drift_above(7, kept, size)
    """,
    "a function with a model of its own": """
        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_holds(model, size):
            hold(model, size)

        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_drifts(model, size):
            drift_above(7, model, size)
    """,
    "a method": """
        @pytest.mark.frozen_bn
        class TestStep:
            @calm
            @given(size=sizes)
            def test_holds(self, kept, size):
                hold(kept, size)

            @calm
            @given(size=sizes)
            def test_drifts(self, kept, size):
                drift_above(7, kept, size)
    """,
    "a TestCase": """
        import unittest

        class TestStep(unittest.TestCase):
            def setUp(self):
                self.model = Net()
                drift(self.model)

            @pytest.mark.frozen_bn
            @calm
            @given(size=sizes)
            def test_holds(self, size):
                hold(self.model, size)

            @pytest.mark.frozen_bn
            @calm
            @given(size=sizes)
            def test_drifts(self, size):
                drift_above(7, self.model, size)
    """,
    "a test of pytest-asyncio": """
        import asyncio

        @pytest.mark.frozen_bn
        @pytest.mark.asyncio
        @calm
        @given(size=sizes)
        async def test_holds(kept, size):
            await asyncio.sleep(0)
            hold(kept, size)

        @pytest.mark.frozen_bn
        @pytest.mark.asyncio
        @calm
        @given(size=sizes)
        async def test_drifts(kept, size):
            await asyncio.sleep(0)
            drift_above(7, kept, size)
    """,
    "a test of anyio": """
        import anyio

        anyio_backend = pytest.fixture(lambda: "trio")

        @pytest.mark.frozen_bn
        @pytest.mark.anyio
        @calm
        @given(size=sizes)
        async def test_holds(kept, size):
            await anyio.sleep(0)
            hold(kept, size)

        @pytest.mark.frozen_bn
        @pytest.mark.anyio
        @calm
        @given(size=sizes)
        async def test_drifts(kept, size):
            await anyio.sleep(0)
            drift_above(7, kept, size)
    """,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_example_is_a_step_and_the_smallest_that_drifts_is_shown(
    sessions: Sessions, way: str
) -> None:
    session = sessions.run(WAYS[way], before=HYPOTHESIS)
    session.tells_apart()
    (drifting,) = session.texts
    assert smallest(session, drifting) == 8


def test_each_parameter_shrinks_on_its_own(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @pytest.mark.parametrize("limit", [4, 11, 50])
        @calm
        @given(size=sizes)
        def test_step(kept, limit, size):
            drift_above(limit, kept, size)
    """,
        before=HYPOTHESIS,
    )
    assert session.outcomes == {
        "test_step[4]": "failed",
        "test_step[11]": "failed",
        "test_step[50]": "passed",
    }
    assert smallest(session, "test_step[4]") == 5
    assert smallest(session, "test_step[11]") == 12
    for name in session.texts:
        session.names_a_violation(name)


def test_the_strategy_may_draw_the_model(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @calm
        @given(net=st.builds(Net), size=sizes)
        def test_holds(net, size):
            hold(net, size)

        @pytest.mark.frozen_bn
        @calm
        @given(net=st.builds(Net), size=sizes)
        def test_drifts(net, size):
            drift_above(7, net, size)

        @pytest.mark.frozen_bn(model="net")
        @calm
        @given(st.builds(Net), sizes)
        def test_drifts_with_positional_strategies(net, size):
            drift_above(7, net, size)

        @pytest.mark.frozen_bn(model="pair.1")
        @calm
        @given(pair=st.tuples(sizes, st.builds(Net)))
        def test_drifts_inside_what_is_drawn(pair):
            drift_above(7, pair[1], pair[0])
    """,
        before=HYPOTHESIS,
    )
    session.tells_apart()
    assert "argument 'net'" in session.texts["test_drifts"]
    assert smallest(session, "test_drifts") == 8
    assert smallest(session, "test_drifts_with_positional_strategies") == 8


def test_explicit_examples_are_steps_too(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        @example(size=7)
        @example(size=77)
        def test_drifts(kept, size):
            drift_above(50, kept, size)

        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        @example(size=77)
        def test_holds(kept, size):
            drift_above(80, kept, size)
    """,
        before=HYPOTHESIS,
    )
    session.tells_apart()
    assert "explicit" in session.says("test_drifts")
    assert smallest(session, "test_drifts") == 77


def test_several_explicit_examples_may_drift(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        @example(size=55)
        @example(size=77)
        def test_step(kept, size):
            drift_above(50, kept, size)
    """,
        before=HYPOTHESIS,
    )
    assert session.outcomes == {"test_step": "failed"}
    assert "2 of 2 frozen BN layers changed" in session.texts["test_step"]
    assert "size=55" in session.texts["test_step"]


def test_only_the_examples_that_run_in_the_guard_count(sessions: Sessions) -> None:
    session = sessions.run(
        """
        from hypothesis import assume, reject

        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_holds_where_others_are_rejected(kept, size):
            if size > 10:
                drift(kept, size)
                reject()
            assume(size > 3)
            hold(kept, size)

        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_drifts(kept, size):
            assume(size > 12)
            drift(kept, size)
    """,
        before=HYPOTHESIS,
    )
    session.tells_apart()
    assert smallest(session, "test_drifts") == 13


def test_several_markers_hold_for_each_example(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen("fc")
        @calm
        @given(size=sizes)
        def test_drifts(kept, size):
            drift_above(7, kept, size)

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen("fc")
        @calm
        @given(size=sizes)
        def test_holds(kept, size):
            hold(kept, size)
    """,
        before=HYPOTHESIS,
    )
    session.tells_apart()
    assert smallest(session, "test_drifts") == 8
    assert "frozen('fc')" not in session.texts["test_drifts"].partition("def test_drifts")[2]


def test_a_guard_inside_an_example_needs_no_marker(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import pytest_bninvariants

        @calm
        @given(size=sizes)
        def test_drifts_by_import(size):
            model = Net()
            with pytest_bninvariants.frozen_bn(model):
                drift_above(7, model, size)

        @settings(database=None, deadline=None, derandomize=True, max_examples=20)
        @given(size=sizes)
        def test_holds_by_fixture(frozen_bn, size):
            model = Net()
            with frozen_bn(model):
                hold(model, size)

        @settings(database=None, deadline=None, derandomize=True, max_examples=20)
        @given(size=sizes)
        def test_drifts_by_fixture(frozen, size):
            model = Net()
            with frozen(model):
                drift_above(7, model, size)
    """,
        before=HYPOTHESIS,
    )
    session.tells_apart()
    for name in session.texts:
        assert smallest(session, name) == 8
