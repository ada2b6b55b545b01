"""A test that is run again compares with the state before its first run."""

from __future__ import annotations

from tests.plugin.sessions import Sessions


def test_a_model_that_drifted_once_does_not_pass_on_a_rerun(sessions: Sessions) -> None:
    session = sessions.run(
        """
        drifts = iter([True])

        @pytest.mark.frozen_bn
        def test_of_the_module(kept):
            (drift if next(drifts, False) else hold)(kept)

        again = iter([True])

        @pytest.mark.frozen_bn
        def test_of_the_function(model):
            (drift if next(again, False) else hold)(model)

        own = iter([True])

        @pytest.mark.frozen_bn
        def test_own_beside_a_drift(kept):
            if next(own, False):
                drift(kept)
                raise ValueError("own")
            hold(kept)

        quiet = iter([True])

        @pytest.mark.frozen_bn
        def test_own_without_a_drift(kept):
            hold(kept)
            if next(quiet, False):
                raise ValueError("own")

        @pytest.mark.frozen_bn
        def test_after_them(kept):
            hold(kept)
    """,
        "--reruns=2",
    )
    assert session.outcomes == {
        "test_of_the_module": "failed",
        "test_of_the_function": "passed",
        "test_own_beside_a_drift": "failed",
        "test_own_without_a_drift": "passed",
        "test_after_them": "passed",
    }
    session.names_a_violation("test_of_the_module")
    assert session.output.count("2 failed, 3 passed, 6 rerun") == 1


def test_a_rerun_of_a_test_case_compares_with_the_first_run(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import unittest

        drifts = iter([True])

        class TestStep(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.model = Net()

            @pytest.mark.frozen_bn
            def test_of_the_class(self):
                (drift if next(drifts, False) else hold)(self.model)
    """,
        "--reruns=1",
    )
    assert session.outcomes == {"TestStep::test_of_the_class": "failed"}


def test_a_rerun_with_a_gate_error_before_may_pass(sessions: Sessions) -> None:
    session = sessions.run(
        """
        late = iter([True])

        @pytest.mark.frozen_bn
        def test_nothing_ran_at_first(kept):
            if not next(late, False):
                hold(kept)
    """,
        "--reruns=1",
    )
    assert session.outcomes == {"test_nothing_ran_at_first": "passed"}
