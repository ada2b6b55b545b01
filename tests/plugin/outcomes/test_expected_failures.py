"""What xfail, expectedFailure and skip make of a violation."""

from __future__ import annotations

from tests.plugin.sessions import Sessions


def test_xfail_may_expect_a_violation(sessions: Sessions) -> None:
    session = sessions.run("""
        STEPS = pytest.mark.parametrize("step", [hold, drift], ids=["hold", "drift"])

        @STEPS
        @pytest.mark.xfail
        @pytest.mark.frozen_bn
        def test_plain(model, step):
            step(model)

        @STEPS
        @pytest.mark.frozen_bn
        @pytest.mark.xfail(strict=True)
        def test_strict(model, step):
            step(model)

        @STEPS
        @pytest.mark.xfail(raises=AssertionError, strict=True)
        @pytest.mark.frozen_bn
        def test_assertion_error(model, step):
            step(model)

        @STEPS
        @pytest.mark.xfail(raises=ValueError, strict=True)
        @pytest.mark.frozen_bn
        def test_value_error(model, step):
            step(model)

        @STEPS
        @pytest.mark.xfail(False, reason="not here", strict=True)
        @pytest.mark.frozen_bn
        def test_false(model, step):
            step(model)

        @STEPS
        @pytest.mark.frozen_bn
        def test_imperative(model, step):
            step(model)
            pytest.xfail("known")

        @STEPS
        @pytest.mark.xfail(strict=True)
        def test_block(model, step, frozen_bn):
            with frozen_bn(model):
                step(model)

        @STEPS
        @pytest.mark.xfail(raises=ValueError, strict=True)
        @pytest.mark.frozen_bn
        def test_own(model, step):
            step(model)
            raise ValueError("own")
    """)
    assert session.outcomes == {
        "test_plain[hold]": "xpassed",
        "test_plain[drift]": "xfailed",
        "test_strict[hold]": "failed",
        "test_strict[drift]": "xfailed",
        "test_assertion_error[hold]": "failed",
        "test_assertion_error[drift]": "xfailed",
        "test_value_error[hold]": "failed",
        "test_value_error[drift]": "failed",
        "test_false[hold]": "passed",
        "test_false[drift]": "failed",
        "test_imperative[hold]": "xfailed",
        "test_imperative[drift]": "xfailed",
        "test_block[hold]": "failed",
        "test_block[drift]": "xfailed",
        "test_own[hold]": "xfailed",
        "test_own[drift]": "xfailed",
    }
    session.names_a_violation("test_value_error[drift]")
    session.names_a_violation("test_false[drift]")


def test_runxfail_reports_a_violation_as_if_it_were_not_expected(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.xfail(strict=True)
        @pytest.mark.frozen_bn
        def test_drifts(model):
            drift(model)

        @pytest.mark.xfail
        @pytest.mark.frozen_bn
        def test_holds(model):
            hold(model)
            pytest.xfail("not now")
    """,
        "--runxfail",
    )
    session.tells_apart()


def test_xfail_strict_in_the_ini_file_counts(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nxfail_strict = true")
    session = sessions.run("""
        @pytest.mark.xfail
        @pytest.mark.frozen_bn
        def test_hold(model):
            hold(model)

        @pytest.mark.xfail
        @pytest.mark.frozen_bn
        def test_drift(model):
            drift(model)
    """)
    assert session.outcomes == {"test_hold": "failed", "test_drift": "xfailed"}


def test_expected_failure_of_unittest_may_expect_a_violation(sessions: Sessions) -> None:
    session = sessions.run("""
        import unittest

        class TestStep(unittest.TestCase):
            def setUp(self):
                self.model = Net()

            @unittest.expectedFailure
            @pytest.mark.frozen_bn
            def test_drift(self):
                drift(self.model)

            @pytest.mark.frozen_bn
            @unittest.expectedFailure
            def test_hold(self):
                hold(self.model)

            @pytest.mark.frozen_bn
            @pytest.mark.xfail(strict=True)
            def test_drift_under_xfail(self):
                drift(self.model)
    """)
    assert session.outcomes == {
        "TestStep::test_drift": "xfailed",
        "TestStep::test_hold": "failed",
        "TestStep::test_drift_under_xfail": "xfailed",
    }


def test_a_skip_wins(sessions: Sessions) -> None:
    session = sessions.run("""
        import unittest

        @pytest.mark.frozen_bn
        def test_inside(model):
            drift(model)
            pytest.skip("not here")

        @pytest.mark.skipif(True, reason="not here")
        @pytest.mark.frozen_bn
        def test_by_mark(model):
            drift(model)

        @pytest.mark.frozen_bn
        def test_import(model):
            drift(model)
            pytest.importorskip("no_such_module")

        @pytest.mark.frozen_bn
        def test_in_a_fixture(skipping):
            pass

        @pytest.fixture
        def skipping():
            pytest.skip("not here")

        def test_in_a_block(model, frozen_bn):
            with frozen_bn(model):
                drift(model)
                pytest.skip("not here")

        class TestStep(unittest.TestCase):
            @pytest.mark.frozen_bn
            def test_of_unittest(self):
                self.model = Net()
                self.skipTest("not here")

            model = Net()
    """)
    assert set(session.outcomes.values()) == {"skipped"}
    assert len(session.outcomes) == 6
