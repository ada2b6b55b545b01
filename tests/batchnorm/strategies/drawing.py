"""How the tests of strategies draw, and find the smallest value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, find, given, settings, strategies as st

calm = settings(
    database=None,
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=list(HealthCheck),
)


def smallest(strategy: st.SearchStrategy[Any], holds: Callable[[Any], bool]) -> Any:
    return find(strategy, holds, settings=settings(calm, max_examples=1000))


def drawn(strategy: st.SearchStrategy[Any], count: int = 100) -> list[Any]:
    """Return values of a strategy."""
    values: list[Any] = []

    @settings(calm, max_examples=count)
    @given(strategy)
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    return values


def anything(value: object) -> bool:
    return True
