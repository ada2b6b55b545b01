"""What a guard watched: a guard that watched nothing would hold, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytest_bninvariants import Guard


def watched(guard: Guard) -> tuple[int, int | None]:
    """Return how many layers and tensors a guard watched, all of which stayed as they were."""
    assert guard.verdict is not None
    assert guard.verdict.holds
    return guard.verdict.layers, guard.verdict.tensors


@contextmanager
def watching(guard: Guard, *, layers: int, tensors: int | None = None) -> Iterator[Guard]:
    """Guard a step that must hold, for so many layers and tensors."""
    with guard:
        yield guard
    assert watched(guard) == (layers, tensors)
