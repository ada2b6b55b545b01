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


def test_a_rerun_forgives_no_batch_statistics_of_a_model_that_outlived_them(
    sessions: Sessions,
) -> None:
    session = sessions.run(
        """
        @pytest.fixture(scope="module")
        def silent():
            return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=0.0))

        @pytest.fixture
        def anew():
            return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=0.0))

        modes = {name: iter([True]) for name in ("kept", "anew")}

        def run(model, name):
            model.train(next(modes[name], False))
            model(torch.randn(4, 3))

        @pytest.mark.frozen_bn(exclude="*.num_batches_tracked")
        def test_of_the_module(silent):
            run(silent, "kept")

        @pytest.mark.frozen_bn(exclude="*.num_batches_tracked")
        def test_of_the_function(anew):
            run(anew, "anew")
    """,
        "--reruns=2",
    )
    assert session.outcomes == {"test_of_the_module": "failed", "test_of_the_function": "passed"}
    said = session.says("test_of_the_module")
    assert "1 of 1 frozen BN layer normalised with batch statistics: 1 (" in said
    assert "that was in an earlier run of this test" in said
