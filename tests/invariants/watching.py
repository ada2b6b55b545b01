"""Run a step that must hold, and say how much its guard watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytest_bninvariants import Guard


@contextmanager
def watching(guard: Guard, *, layers: int, tensors: int | None = None) -> Iterator[Guard]:
    """Guard a step; the invariant must hold for so many layers and tensors."""
    with guard:
        yield guard
    assert guard.verdict is not None
    assert guard.verdict.holds
    assert (guard.verdict.layers, guard.verdict.tensors) == (layers, tensors)
