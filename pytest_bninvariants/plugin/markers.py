"""The markers that put a guard around a test, and which of them a test has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache

import pytest

from pytest_bninvariants.catalogue import INVARIANTS, RANKS
from pytest_bninvariants.errors import shorten

MARKERS = {
    name: invariant.marker for name, invariant in INVARIANTS.items() if invariant.marker is not None
}


def help_lines() -> Iterator[str]:
    """Yield the lines of `pytest --markers`."""
    for name, marker in MARKERS.items():
        yield f"{name}{marker.signature}: {marker.help}"
    yield f"ranks{RANKS.signature}: {RANKS.help}"


def as_written(mark: pytest.Mark) -> str:
    """Return a marker as its user wrote it, long values cut."""
    arguments = [shorten(value) for value in mark.args]
    arguments += [f"{name}={shorten(value)}" for name, value in mark.kwargs.items()]
    return f"@pytest.mark.{mark.name}" + (f"({', '.join(arguments)})" if arguments else "")


def marker_key(mark: pytest.Mark) -> object:
    """Return what two markers have in common that request the same guard."""
    return mark.name, repr(mark.args), repr(mark.kwargs)


def guard_marks(item: pytest.Item) -> list[pytest.Mark]:
    """Return a test's markers that request a guard, its module's and class's first, each once.

    A doctest has none: its module's markers are for the tests, and it has no fixtures.
    """
    if isinstance(item, pytest.DoctestItem):
        return []
    marks = {marker_key(mark): mark for mark in item.iter_markers() if mark.name in MARKERS}
    return list(marks.values())[::-1]


def wrong_marks(item: pytest.Item) -> Iterator[str]:
    """Yield what is wrong with a test's markers that look like ours, and are none."""
    if isinstance(item, pytest.DoctestItem):
        return
    unknown = {mark.name for mark in item.iter_markers() if mark.name not in MARKERS}
    suspects = [name for name in sorted(unknown) if _meant(name)]
    if suspects:
        lines = item.config.getini("markers")
        registered = {re.split(r"[:(]", line)[0].strip() for line in lines}
        for name in suspects:
            if name not in registered:
                yield _correction(name, _meant(name))


@cache
def _meant(name: str) -> str:
    """Return the invariant that a marker's name was meant to be; empty if it is another's."""
    plain = {_plain(each): each for each in INVARIANTS}
    compound = [
        each for each, ours in plain.items() if "_" in ours
    ]  # a single word may be anyone's
    near = (
        [_plain(name)]
        if _plain(name) in plain
        else get_close_matches(_plain(name), compound, 1, 0.88)
    )
    return plain[near[0]] if near else ""


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _correction(name: str, meant: str) -> str:
    if meant in MARKERS:
        return f"@pytest.mark.{name} guards nothing: the marker is called @pytest.mark.{meant}"
    usage = INVARIANTS[meant].usage
    return f"@pytest.mark.{name} guards nothing: {meant} is not a marker; in the test write {usage}"
