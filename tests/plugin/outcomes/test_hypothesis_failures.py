"""What fails under @given besides a drift, and in what state the next example starts."""

from __future__ import annotations

import pytest

from tests.plugin.outcomes.given_tests import HYPOTHESIS, smallest
from tests.plugin.sessions import Sessions


def test_an_own_exception_without_a_drift_has_no_note(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_step(kept, size):
            hold(kept, size)
            if size > 8:
                raise ValueError("too big")
    """,
        before=HYPOTHESIS,
    )
    assert session.outcomes == {"test_step": "failed"}
    assert session.first_line("test_step") == "ValueError: too big"
    assert smallest(session, "test_step") == 9
    assert "frozen" not in session.says("test_step")


def test_an_own_exception_after_a_drift_wins(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_step(kept, size):
            drift_above(8, kept, size)
            if size > 8:
                raise ValueError("too big")
    """,
        before=HYPOTHESIS,
    )
    assert session.outcomes == {"test_step": "failed"}
    said = session.says("test_step")
    assert said.startswith("ValueError: too big")
    assert "frozen state had changed: 2 of 2 frozen BN layers changed" in said
    assert smallest(session, "test_step") == 9


@pytest.mark.parametrize(
    "fails",
    [
        "drift_above(8, kept, size)",
        "hold(kept, size); assert size < 9",
        "drift(kept); assert size < 9",
    ],
    ids=["with a drift", "with an own exception", "with both"],
)
def test_what_hypothesis_explains_names_no_file_of_ours(sessions: Sessions, fails: str) -> None:
    session = sessions.run(
        f"""
        @pytest.mark.frozen_bn
        @settings(calm, phases=list(Phase))
        @given(size=sizes)
        def test_step(kept, size):
            {fails}
    """,
        before=HYPOTHESIS,
    )
    assert session.outcomes == {"test_step": "failed"}


def test_a_model_is_put_back_after_the_example_that_failed(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_drifts(kept, size):
            drift_above(7, kept, size)

        def test_holds_the_first_values_now(kept):
            assert not kept.training
            assert kept.bn1.num_batches_tracked == 0
            assert kept.bn1.running_var.eq(1).all()
    """,
        before=HYPOTHESIS,
    )
    session.tells_apart()


def test_a_mode_that_one_example_sets_does_not_reach_the_next(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_step(kept, size):
            if size > 7:
                kept.train()
            kept(batch(size))
    """,
        before=HYPOTHESIS,
    )
    session.names_a_violation("test_step")
    assert smallest(session, "test_step") == 8


@pytest.mark.parametrize(
    "wrong", ['"bn9"', "param=True", 'model="other"'], ids=["pattern", "option", "model"]
)
def test_a_gate_error_under_given_is_a_failure(sessions: Sessions, wrong: str) -> None:
    session = sessions.run(
        f"""
        @pytest.mark.xfail
        @pytest.mark.frozen_bn({wrong})
        @calm
        @given(size=sizes)
        def test_step(kept, size):
            hold(kept, size)
    """,
        before=HYPOTHESIS,
    )
    assert session.outcomes == {"test_step": "failed"}
    assert "laky" not in session.output


def test_nothing_ran_under_given_is_a_failure(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @calm
        @given(size=sizes)
        def test_step(kept, size):
            pass
    """,
        before=HYPOTHESIS,
    )
    assert session.outcomes == {"test_step": "failed"}
    assert session.first_line("test_step").startswith(
        "cannot judge: nothing ran inside frozen_bn()"
    )


def test_a_model_is_put_back_after_the_tests_own_error(sessions: Sessions) -> None:
    session = sessions.run(
        """
        from hypothesis import given, settings, strategies as st

        @pytest.fixture(scope="module")
        def net():
            return Net()

        seen = []

        @pytest.mark.frozen_bn("bn1")
        @settings(max_examples=20, database=None)
        @given(size=st.integers(2, 9))
        def test_own(net, size):
            seen.append((float(net.fc.weight[0, 0]), size >= 4))
            nudge(net)
            assert size < 4

        def test_each_example_after_one_that_failed_began_alike():
            pairs = [pair for pair in zip(seen, seen[1:]) if pair[0][1]]
            assert pairs
            assert all(first[0] == second[0] for first, second in pairs)
        """
    )
    assert session.outcomes == {
        "test_own": "failed",
        "test_each_example_after_one_that_failed_began_alike": "passed",
    }
