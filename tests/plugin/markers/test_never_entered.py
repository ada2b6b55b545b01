"""A guard that was never entered or never left, and a marker that came late, fail the test."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Sessions


def test_a_guard_that_a_fixture_never_entered_fails_the_test(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def guarded(model, frozen_bn):
            frozen_bn(model)
            return model

        def test_step(guarded):
            drift(guarded)

        def test_after(model):
            drift(model)
    """)
    assert session.outcomes == {"test_step": "failed", "test_after": "passed"}


def test_a_guard_that_is_never_left_fails_the_test_once_its_fixtures_have_ended(
    sessions: Sessions,
) -> None:
    session = sessions.run("""
        import contextlib

        @pytest.fixture
        def stack():
            with contextlib.ExitStack() as stack:
                yield stack

        @pytest.fixture(scope="module")
        def around(net):
            with frozen_bn(net) as guard:
                yield guard
                hold(net)

        @pytest.fixture(scope="module")
        def net():
            return Net().eval()

        from pytest_bninvariants import frozen_bn

        def test_entered_drifts(model):
            frozen_bn(model).__enter__()
            drift(model)

        def test_by_a_fixture_holds(around):
            pass

        @pytest.mark.skip
        def test_by_a_fixture_is_skipped(around):
            pass

        @pytest.fixture
        def failing(around):
            raise ValueError("own")

        def test_by_a_fixture_fails_in_setup(failing):
            pass

        def test_by_a_fixture_still_holds(around):
            pass

        def test_stack_holds(model, stack):
            stack.enter_context(frozen_bn(model))
            hold(model)

        def test_suspended_drifts(model):
            def losses():
                with frozen_bn(model):
                    while True:
                        yield drift(model)

            for _, loss in zip(range(2), losses()):
                pass
    """)
    assert session.outcomes == {
        "test_entered_drifts": "passed error",
        "test_by_a_fixture_holds": "passed",
        "test_by_a_fixture_is_skipped": "skipped",
        "test_by_a_fixture_fails_in_setup": "error",
        "test_by_a_fixture_still_holds": "passed",
        "test_stack_holds": "passed",
        "test_suspended_drifts": "failed",
    }
    assert "was entered and never left" in session.output
    assert "2 of 2 frozen BN layers changed" in session.first_line("test_suspended_drifts")


def test_a_guard_never_entered_in_one_test_is_not_charged_to_the_next(sessions: Sessions) -> None:
    session = sessions.run("""
        def test_own(model, frozen_bn):
            frozen_bn(model)
            raise ValueError("own")

        def test_after(model):
            drift(model)
    """)
    assert session.outcomes == {"test_own": "failed", "test_after": "passed"}
    assert session.first_line("test_own") == "ValueError: own"


def test_a_guard_never_entered_under_given_fails(sessions: Sessions) -> None:
    session = sessions.run("""
        from hypothesis import given, settings, strategies as st

        @pytest.mark.xfail
        @settings(database=None, deadline=None, max_examples=3)
        @given(size=st.integers(2, 5))
        def test_step(frozen_bn, size):
            model = Net()
            frozen_bn(model)
            drift(model, size)
    """)
    assert session.outcomes == {"test_step": "failed"}
    assert "was never entered" in session.first_line("test_step")


@pytest.mark.parametrize("xfail", ["", "@pytest.mark.xfail"], ids=["plain", "xfail"])
def test_a_marker_that_comes_while_the_test_runs_fails_it_by_its_own_name(
    sessions: Sessions, xfail: str
) -> None:
    session = sessions.run(f"""
        pytestmark = pytest.mark.frozen

        {xfail}
        @pytest.mark.frozen_bn(parameters=False)
        def test_it(model, request):
            request.node.add_marker(pytest.mark.frozen_bn("bn1"))
            hold(model)
    """)
    assert session.outcomes == {"test_it": "failed"}
    late = "@pytest.mark.frozen_bn('bn1') was added while the test ran, too late to guard it"
    assert late in session.output


def test_a_marker_that_a_fixture_adds_guards_the_test(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def marked(request):
            request.node.add_marker(pytest.mark.frozen_bn("bn1"))

        def test_holds(marked, model):
            hold(model)

        def test_drifts(marked, model):
            drift(model)
    """)
    assert session.outcomes == {"test_holds": "passed", "test_drifts": "failed"}
