"""What becomes of a violation, beside everything else that decides on a test's outcome."""

from __future__ import annotations

import re

import pytest

from tests.plugin.sessions import Sessions

SUBTESTS = ["unittest"] + (["pytest"] if hasattr(pytest, "Subtests") else [])


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
