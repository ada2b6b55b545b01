"""What becomes of a violation, beside everything else that decides on a test's outcome."""

from __future__ import annotations

import re

import pytest

from tests.plugin.sessions import Sessions

SUBTESTS = ["unittest"] + (["pytest"] if hasattr(pytest, "Subtests") else [])


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


def test_exitfirst_and_maxfail_count_violations(sessions: Sessions) -> None:
    source = """
        @pytest.mark.frozen_bn
        @pytest.mark.parametrize("number", range(4))
        def test_step(model, number):
            drift(model)
    """
    first = sessions.run(source, "-x")
    assert first.outcomes == {"test_step[0]": "failed"}
    two = sessions.again("--maxfail=2")
    assert two.outcomes == {"test_step[0]": "failed", "test_step[1]": "failed"}


def test_last_failed_runs_what_drifted(sessions: Sessions) -> None:
    sessions.caches = True
    source = """
        @pytest.mark.frozen_bn
        def test_holds(model):
            hold(model)

        @pytest.mark.frozen_bn
        def test_drifts(model):
            drift(model)

        @pytest.mark.xfail
        @pytest.mark.frozen_bn
        def test_drifts_as_expected(model):
            drift(model)

        @pytest.mark.xfail
        @pytest.mark.frozen_bn("bn9")
        def test_has_a_typo(model):
            hold(model)
    """
    sessions.run(source)
    session = sessions.again("--lf")
    assert session.outcomes == {"test_drifts": "failed", "test_has_a_typo": "failed"}


def test_workers_of_xdist_tell_the_same(sessions: Sessions) -> None:
    source = """
        import unittest
        from hypothesis import given, settings, strategies as st

        @pytest.mark.frozen_bn
        def test_holds(model):
            hold(model)

        @pytest.mark.frozen_bn
        def test_drifts(model):
            drift(model)

        def test_drifts_in_a_block(model, frozen):
            with frozen(model):
                drift(model)

        @pytest.mark.xfail(raises=AssertionError, strict=True)
        @pytest.mark.frozen_bn
        def test_expected(model):
            drift(model)

        @pytest.mark.xfail
        @pytest.mark.frozen_bn("bn9")
        def test_typo(model):
            hold(model)

        @pytest.mark.xfail
        def test_never_entered(model, frozen_bn):
            frozen_bn(model)

        @pytest.mark.frozen_bn
        def test_own(model):
            drift(model)
            raise ValueError("own")

        @pytest.mark.frozen_bn
        @settings(database=None, deadline=None, derandomize=True, print_blob=False)
        @given(size=st.integers(2, 40))
        def test_given(kept, size):
            (drift if size > 7 else hold)(kept, size)

        class TestStep(unittest.TestCase):
            def setUp(self):
                self.model = Net()

            @pytest.mark.frozen_bn
            def test_drifts(self):
                drift(self.model)

        def test_device(bn_device, model, frozen_bn):
            with frozen_bn(model.to(bn_device)):
                hold(model)
    """
    here = sessions.run(source)
    there = sessions.again("-n2")
    assert there.outcomes == here.outcomes
    assert there.outcomes["test_device[cpu]"] == "passed"
    assert sorted(set(here.outcomes.values())) == ["failed", "passed", "xfailed"]
    varies = re.compile(r"^\[gw\d+\].*| at 0x[0-9a-f]+")
    for name, text in here.texts.items():
        assert varies.sub("", there.texts[name]).strip() == varies.sub("", text).strip()


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


@pytest.mark.parametrize("kind", SUBTESTS)
def test_subtests_are_no_steps_of_their_own(sessions: Sessions, kind: str) -> None:
    head = {
        "unittest": """
        import unittest

        class TestStep(unittest.TestCase):
            def setUp(self):
                self.model = Net()

            @pytest.mark.frozen_bn
            def test_drifts(self):
                for step in (hold, drift):
                    with self.subTest(step=step.__name__):
                        step(self.model)

            @pytest.mark.frozen_bn
            def test_holds(self):
                for number in range(2):
                    with self.subTest(number=number):
                        hold(self.model)
        """,
        "pytest": """
        @pytest.mark.frozen_bn
        def test_drifts(model, subtests):
            for step in (hold, drift):
                with subtests.test(step=step.__name__):
                    step(model)

        @pytest.mark.frozen_bn
        def test_holds(model, subtests):
            for number in range(2):
                with subtests.test(number=number):
                    hold(model)
        """,
    }
    session = sessions.run(head[kind])
    outcomes = {name.rpartition("::")[2]: outcome for name, outcome in session.outcomes.items()}
    assert outcomes == {"test_drifts": "failed", "test_holds": "passed"}
    (name,) = session.texts
    session.names_a_violation(name)


@pytest.mark.parametrize("kind", SUBTESTS)
def test_a_block_in_a_subtest_fails_that_subtest(sessions: Sessions, kind: str) -> None:
    source = {
        "unittest": """
        import unittest
        from pytest_bninvariants import frozen_bn

        class TestStep(unittest.TestCase):
            def test_step(self):
                model = Net()
                for step in (drift, hold):
                    with self.subTest(step=step.__name__), frozen_bn(model):
                        step(model)
        """,
        "pytest": """
        def test_step(model, subtests, frozen_bn):
            for step in (drift, hold):
                with subtests.test(step=step.__name__), frozen_bn(model):
                    step(model)
        """,
    }[kind]
    session = sessions.run(source, exit_code=1)
    assert "2 of 2 frozen BN layers changed: bn1, bn2 (mode-flip)" in session.output


def test_teardown_errors_are_reported_beside_a_violation(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def breaking(model):
            yield model
            raise RuntimeError("in the teardown")

        @pytest.mark.frozen_bn
        def test_drifts(breaking):
            drift(breaking)

        @pytest.mark.frozen_bn
        def test_holds(breaking):
            hold(breaking)
    """)
    assert session.outcomes == {"test_drifts": "failed error", "test_holds": "passed error"}
    assert session.output.count("RuntimeError: in the teardown") >= 2


def test_setup_errors_stay_errors(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def breaking():
            raise RuntimeError("in the setup")

        @pytest.mark.frozen_bn("bn9")
        def test_step(breaking):
            pass
    """)
    assert session.outcomes == {"test_step": "error"}


def test_a_block_that_breaks_in_a_fixture_is_that_fixtures_error(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def guarded(model, frozen_bn):
            with frozen_bn(model):
                yield model

        def test_drifts(guarded):
            drift(guarded)

        def test_holds(guarded):
            hold(guarded)
    """)
    assert session.outcomes == {"test_drifts": "passed error", "test_holds": "passed"}


def test_an_interrupt_leaves_no_observer_behind(sessions: Sessions) -> None:
    sessions.pytester.makepyfile(
        test_later="""
        def test_later():
            pass
    """
    )
    session = sessions.run(
        """
        from pytest_bninvariants.instrumentation import observer_api

        call, setattr_ = nn.Module._call_impl, nn.Module.__setattr__.__code__

        @pytest.fixture(scope="session", autouse=True)
        def _look():
            yield
            assert nn.Module._call_impl is call
            assert nn.Module.__setattr__.__code__ is setattr_
            assert observer_api.active_observers == ()
            print("nothing is left")

        @pytest.mark.frozen_bn
        def test_step(model, frozen):
            with frozen(model):
                assert nn.Module._call_impl is not call
                drift(model)
                raise KeyboardInterrupt
    """,
        "-s",
        alone=True,
        exit_code=2,
    )
    assert "nothing is left" in session.output
    assert "KeyboardInterrupt" in session.output


@pytest.mark.parametrize("way", ["sys.exit(3)", "pytest.exit('enough')"])
def test_an_exit_leaves_no_observer_behind(sessions: Sessions, way: str) -> None:
    sessions.run(
        f"""
        import sys

        @pytest.mark.frozen_bn
        def test_step(model, frozen):
            with frozen(model):
                {way}
    """,
        exit_code=1 if "sys" in way else 2,
    )


def test_the_debugger_stops_at_the_test(sessions: Sessions) -> None:
    source = """
        import unittest

        @pytest.mark.frozen_bn
        @pytest.mark.parametrize("number", [3])
        def test_marked(model, number):
            drift(model)

        def test_block(model, frozen_bn):
            local = 41
            with frozen_bn(model):
                drift(model)

        class TestStep(unittest.TestCase):
            def setUp(self):
                self.model = Net()

            @pytest.mark.frozen_bn
            def test_of_unittest(self):
                drift(self.model)
    """
    typed = [
        "p ('marked', int(model.bn1.num_batches_tracked), number, hold.__name__)",
        "c",
        "p ('block', int(model.bn1.num_batches_tracked), local + 1, hold.__name__)",
        "c",
        "p ('unittest', int(self.model.bn1.num_batches_tracked), hold.__name__)",
        "c",
    ]
    lines = "\n".join([*typed, ""]).encode()
    session = sessions.run(source, "--pdb", alone=True, stdin=lines)
    assert set(session.outcomes.values()) == {"failed"}
    stops = re.findall(r"(?m)^> .*test_it\.py\(\d+\)(\w+)\(\)\n-> (.*)$", session.output)
    assert stops == [
        ("test_marked", "def test_marked(model, number):"),
        ("test_block", "with frozen_bn(model):"),
        ("test_of_unittest", "def test_of_unittest(self):"),
    ]
    assert "('marked', 1, 3, 'hold')" in session.output
    assert "('block', 1, 42, 'hold')" in session.output
    assert "('unittest', 1, 'hold')" in session.output
