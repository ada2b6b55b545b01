"""What of a marked test is its step, and which guards stand around it."""

from __future__ import annotations

from tests.plugin.sessions import Sessions


def test_all_markers_of_a_test_hold_and_are_told_apart(sessions: Sessions) -> None:
    session = sessions.run("""
        pytestmark = pytest.mark.frozen("fc")

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_holds(model):
            hold(model)

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_drifts(model):
            drift(model)

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_drifts_once(model):
            model.bn2.train()
            model(batch())

        @pytest.mark.frozen_bn
        def test_drifts_in_its_linear_layer(model):
            nudge(model)

        @pytest.mark.frozen_bn
        def test_drifts_everywhere(model):
            nudge(model)
            drift(model)
    """)
    session.tells_apart()
    both = session.texts["test_drifts"]
    assert "frozen_bn('bn1') on Net" in both
    assert "frozen_bn('bn2') on Net" in both
    assert "frozen('fc')" not in both
    assert "frozen_bn('bn1'): 1 of 1 frozen BN layer changed" in both
    assert "frozen_bn('bn2'): 1 of 1 frozen BN layer changed" in both
    assert "frozen_bn('bn2') on Net" in session.texts["test_drifts_once"]
    assert "frozen_bn('bn1')" not in session.texts["test_drifts_once"]
    assert session.first_line("test_drifts_once").startswith("1 of 1 frozen BN layer changed: bn2")
    assert "frozen('fc') on Net" in session.texts["test_drifts_in_its_linear_layer"]
    assert "frozen('fc') on Net" in session.texts["test_drifts_everywhere"]
    assert "frozen_bn() on Net" in session.texts["test_drifts_everywhere"]


def test_the_same_marker_on_module_and_function_counts_once(sessions: Sessions) -> None:
    session = sessions.run("""
        pytestmark = pytest.mark.frozen_bn

        @pytest.mark.frozen_bn
        def test_holds(model):
            hold(model)

        @pytest.mark.frozen_bn
        def test_drifts(model):
            drift(model)

        @pytest.mark.frozen_bn("bn1")
        def test_drifts_under_both(model):
            drift(model)
    """)
    session.tells_apart()
    assert session.texts["test_drifts"].count("frozen_bn() on Net") == 1
    assert "frozen_bn() on Net" in session.texts["test_drifts_under_both"]
    assert "frozen_bn('bn1') on Net" in session.texts["test_drifts_under_both"]


def test_fixtures_are_no_part_of_the_step(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def net():
            net = Net()
            drift(net)
            yield net
            drift(net)

        @pytest.mark.frozen_bn
        def test_holds(net):
            hold(net)

        @pytest.mark.frozen_bn
        def test_drifts(net):
            drift(net)
    """)
    session.tells_apart()


def test_a_guard_by_fixture_or_by_import_minds_its_block_alone(sessions: Sessions) -> None:
    session = sessions.run("""
        import pytest_bninvariants

        def test_holds_around_the_block(model, frozen_bn):
            drift(model)
            with frozen_bn(model):
                hold(model)
            drift(model)

        def test_drifts_in_the_block(model, frozen_bn):
            with frozen_bn(model, "bn1"):
                drift(model)

        def test_holds_in_blocks_of_both_kinds(model, frozen, frozen_bn):
            with frozen(model, "fc"), frozen_bn(model):
                hold(model)

        def test_drifts_for_the_inner(model, frozen, frozen_bn):
            with frozen_bn(model), frozen(model, "fc"):
                nudge(model)

        def test_holds_by_import(model):
            with pytest_bninvariants.frozen(model), pytest_bninvariants.frozen_bn(model):
                hold(model)

        def test_drifts_by_import(model):
            with pytest_bninvariants.frozen_bn(model):
                drift(model)

        @pytest.mark.frozen("fc")
        def test_drifts_in_a_marked_test(model, frozen_bn):
            with frozen_bn(model):
                drift(model)
    """)
    session.tells_apart()


def test_a_guarded_callable_object_shows_something_useful(sessions: Sessions) -> None:
    session = sessions.run("""
        import functools

        def step(model, run):
            run(model)

        def decorated(function):
            @functools.wraps(function)
            def inner(*args, **kwargs):
                return function(*args, **kwargs)
            return inner

        @pytest.mark.frozen_bn
        @decorated
        def test_drifts(model):
            drift(model)

        @decorated
        @pytest.mark.frozen_bn
        def test_holds(model):
            hold(model)
    """)
    session.tells_apart()
    assert ">   def test_drifts(model):" in session.texts["test_drifts"]


def test_a_marker_that_cannot_begin_stops_those_that_have_begun(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn
        @pytest.mark.frozen("nowhere")
        def test_one_order(model):
            hold(model)

        @pytest.mark.frozen("nowhere")
        @pytest.mark.frozen_bn
        def test_the_other(model):
            hold(model)
        """
    )  # which also checks that no observer is left
    assert session.outcomes == {"test_one_order": "failed", "test_the_other": "failed"}
    for name in session.outcomes:
        assert session.first_line(name).startswith("cannot judge: 'nowhere' matches nothing")
