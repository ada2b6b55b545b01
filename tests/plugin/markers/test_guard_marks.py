"""Which markers of a test request guards, in which order, and how they are written."""

from __future__ import annotations

import pytest

from pytest_bninvariants.plugin.markers import as_written, guard_marks


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
