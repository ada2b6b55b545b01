"""A test's own failure wins, and the drift is added to it as a note."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Sessions

OWN = {
    "marker": """
        @pytest.mark.frozen_bn
        def test_drifted(model):
            drift(model)
            raise ValueError("own")

        @pytest.mark.frozen_bn
        def test_held(model):
            hold(model)
            raise ValueError("own")
    """,
    "fixture": """
        def test_drifted(model, frozen_bn):
            with frozen_bn(model):
                drift(model)
                raise ValueError("own")

        def test_held(model, frozen_bn):
            with frozen_bn(model):
                hold(model)
                raise ValueError("own")
    """,
    "TestCase": """
        import unittest

        class Test(unittest.TestCase):
            def setUp(self):
                self.model = Net()

            @pytest.mark.frozen_bn
            def test_drifted(self):
                drift(self.model)
                raise ValueError("own")

            @pytest.mark.frozen_bn
            def test_held(self):
                hold(self.model)
                raise ValueError("own")
    """,
    "IsolatedAsyncioTestCase": """
        import unittest

        class Test(unittest.IsolatedAsyncioTestCase):
            def setUp(self):
                self.model = Net()

            @pytest.mark.frozen_bn
            async def test_drifted(self):
                drift(self.model)
                raise ValueError("own")

            @pytest.mark.frozen_bn
            async def test_held(self):
                hold(self.model)
                raise ValueError("own")
    """,
    "async": """
        @pytest.mark.frozen_bn
        @pytest.mark.asyncio
        async def test_drifted(model):
            drift(model)
            raise ValueError("own")

        @pytest.mark.frozen_bn
        @pytest.mark.asyncio
        async def test_held(model):
            hold(model)
            raise ValueError("own")
    """,
    "@given": """
        from hypothesis import given, settings, strategies as st

        @pytest.mark.frozen_bn
        @settings(database=None, deadline=None)
        @given(size=st.integers(2, 5))
        def test_drifted(kept, size):
            drift(kept)
            raise ValueError("own")

        @pytest.mark.frozen_bn
        @settings(database=None, deadline=None)
        @given(size=st.integers(2, 5))
        def test_held(kept, size):
            hold(kept)
            raise ValueError("own")
    """,
}


@pytest.mark.parametrize("way", OWN)
def test_an_own_exception_wins_and_shows_the_drift_as_a_note(sessions: Sessions, way: str) -> None:
    session = sessions.run(OWN[way])
    assert set(session.outcomes.values()) == {"failed"}
    held, drifted = sorted(session.texts, key=lambda name: "drifted" in name)
    for name in session.texts:
        assert session.first_line(name) == "ValueError: own"
        assert session.summaries[name] == "ValueError: own"
        assert 'raise ValueError("own")' in session.texts[name]
    said = session.says(drifted)
    assert said.count("when this was raised, frozen state had changed:") == 1
    assert said.count("2 of 2 frozen BN layers changed: bn1, bn2") == 1
    assert "frozen" not in session.says(held)


def test_every_drift_of_a_test_is_noted(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen("fc")
        def test_step(model, frozen_bn):
            nudge(model)
            with frozen_bn(model, "bn2"):
                drift(model)
                assert False, "own"
    """)
    said = session.says("test_step")
    assert said.startswith("AssertionError: own")
    assert said.count("when this was raised, frozen state had changed:") == 3


def test_pytest_fail_wins_over_a_violation(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.mark.frozen_bn
        def test_step(model):
            drift(model)
            pytest.fail("own")
    """)
    assert session.outcomes == {"test_step": "failed"}
    assert session.first_line("test_step") == "Failed: own"


def test_an_exception_group_of_the_tests_own_wins(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.mark.frozen_bn
        def test_step(model):
            drift(model)
            raise ExceptionGroup("several", [ValueError("own"), TypeError("own")])
    """)
    assert session.outcomes == {"test_step": "failed"}
    assert "several (2 sub-exceptions)" in session.texts["test_step"]
    assert "frozen state had changed" in session.texts["test_step"]


def test_a_violation_in_a_block_may_be_caught(sessions: Sessions) -> None:
    session = sessions.run("""
        import pytest_bninvariants

        def test_step(model, frozen_bn):
            with pytest.raises(pytest_bninvariants.FrozenStateChanged) as caught:
                with frozen_bn(model):
                    drift(model)
            assert caught.value.verdict.changed_layers == ("bn1", "bn2")

        def test_gate(model, frozen_bn):
            with pytest.raises(pytest_bninvariants.GateError, match="nothing ran"):
                with frozen_bn(model):
                    pass

        @pytest.mark.frozen("fc")
        def test_beside_a_marker(model, frozen_bn):
            with pytest.raises(AssertionError, match="2 of 2 frozen BN layers"):
                with frozen_bn(model):
                    drift(model)
    """)
    assert set(session.outcomes.values()) == {"passed"}


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="subtests came with pytest 9")
def test_a_subtest_tells_what_ended_it(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def test_it(model, subtests):
            with subtests.test("drift"), guard(model):
                drift(model)
                raise ValueError("own")
            hold(model)
    """,
        before="from pytest_bninvariants import frozen_bn as guard\n",
        exit_code=1,
    )
    assert session.output.count("2 of 2 frozen BN layers changed") == 1
