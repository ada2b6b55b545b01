"""The markers that put a guard around a test, and which of them a test has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_bninvariants.catalogue import INVARIANTS

MARKERS = {
    name: invariant.marker for name, invariant in INVARIANTS.items() if invariant.marker is not None
}


def help_lines() -> Iterator[str]:
    """Yield the lines of `pytest --markers`."""
    for name, marker in MARKERS.items():
        yield f"{name}{marker.signature}: {marker.help}"


def as_written(mark: pytest.Mark) -> str:
    """Return a marker as its user wrote it."""
    arguments = [repr(value) for value in mark.args]
    arguments += [f"{name}={value!r}" for name, value in mark.kwargs.items()]
    return f"@pytest.mark.{mark.name}" + (f"({', '.join(arguments)})" if arguments else "")


def guard_marks(item: pytest.Item) -> list[pytest.Mark]:
    """Return a test's markers that request a guard, its module's and class's first, each once."""
    marks = {as_written(mark): mark for mark in item.iter_markers() if mark.name in MARKERS}
    return list(marks.values())[::-1]
