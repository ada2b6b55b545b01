"""Which markers guard a test; one that looks like one of ours fails it, since it guards nothing."""

from __future__ import annotations

import pytest

from pytest_bninvariants.plugin.markers import as_written, guard_marks
from tests.plugin.sessions import Sessions

CALM = "ignore::pytest.PytestUnknownMarkWarning"


@pytest.mark.parametrize("xfail", ["", "@pytest.mark.xfail"], ids=["plain", "xfail"])
def test_a_name_that_is_nearly_ours_fails_the_test(sessions: Sessions, xfail: str) -> None:
    meant = {
        "frozenbn": "frozen_bn",
        "FROZEN": "frozen",
        "bn_update": "bn_updates",
        "insync": "in_sync",
    }
    session = sessions.run(
        "".join(
            f"""
            {xfail}
            @pytest.mark.{name}("bn1")
            def test_{name}(model):
                drift(model)
            """
            for name in meant
        ),
        "-W",
        CALM,
    )
    assert session.outcomes == {f"test_{name}": "failed" for name in meant}
    for name, right in meant.items():
        assert session.says(f"test_{name}") == (
            f"cannot judge: @pytest.mark.{name} guards nothing: the marker is called "
            f"@pytest.mark.{right}"
        )


def test_a_marker_of_a_module_or_class_counts_too(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import unittest

        pytestmark = pytest.mark.frozenbn

        def test_of_the_module(model):
            drift(model)

        class TestOfUnittest(unittest.TestCase):
            def test_of_the_class(self):
                drift(Net())
    """,
        "-W",
        CALM,
    )
    assert set(session.outcomes.values()) == {"failed"}
    assert len(session.outcomes) == 2


def test_an_invariant_without_a_marker_says_how_it_is_called(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.accumulates
        def test_it(model):
            drift(model)
    """,
        "-W",
        CALM,
    )
    assert session.outcomes == {"test_it": "failed"}
    assert session.says("test_it").endswith(
        "accumulates is not a marker; in the test write accumulates(model, batch, 4, loss=loss)"
    )


def test_other_markers_are_their_users_own(sessions: Sessions) -> None:
    sessions.pytester.makeini("[pytest]\nmarkers =\n    frozenbn: tests of our own frozen layers")
    session = sessions.run(
        """
        @pytest.mark.train
        @pytest.mark.freeze
        @pytest.mark.updates
        @pytest.mark.frozenbn
        def test_holds(model):
            drift(model)
    """,
        "-W",
        CALM,
    )
    assert session.outcomes == {"test_holds": "passed"}


def test_doctests_of_a_marked_module_are_left_alone(sessions: Sessions) -> None:
    session = sessions.run(
        '''
        pytestmark = [pytest.mark.frozen_bn, pytest.mark.frozen]

        def double(number):
            """Return the double.

            >>> double(2)
            4
            """
            return 2 * number

        def test_holds(model):
            hold(model)

        def test_drifts(model):
            drift(model)
    ''',
        "--doctest-modules",
        "test_it.py",
    )
    assert session.outcomes == {
        "test_it.double": "passed",
        "test_holds": "passed",
        "test_drifts": "failed",
    }


def marks_of(pytester: pytest.Pytester, source: str) -> list[str]:
    return [as_written(mark) for mark in guard_marks(pytester.getitem(source, "test_it"))]


def test_markers_of_module_and_class_come_first(pytester: pytest.Pytester) -> None:
    written = marks_of(
        pytester,
        """
        import pytest

        pytestmark = [pytest.mark.frozen("module"), pytest.mark.skipif(False, reason="")]

        @pytest.mark.frozen("upper")
        @pytest.mark.frozen("lower")
        def test_it():
            pass
        """,
    )
    assert written == [
        "@pytest.mark.frozen('module')",
        "@pytest.mark.frozen('upper')",
        "@pytest.mark.frozen('lower')",
    ]


def test_equal_markers_are_one_and_another_option_is_another_marker(
    pytester: pytest.Pytester,
) -> None:
    written = marks_of(
        pytester,
        """
        import pytest

        pytestmark = pytest.mark.frozen_bn("a", buffers=False)

        @pytest.mark.frozen_bn("a")
        @pytest.mark.frozen_bn("a", buffers=False)
        @pytest.mark.frozen_bn("b", buffers=False)
        def test_it():
            pass
        """,
    )
    assert sorted(written) == [
        "@pytest.mark.frozen_bn('a')",
        "@pytest.mark.frozen_bn('a', buffers=False)",
        "@pytest.mark.frozen_bn('b', buffers=False)",
    ]
