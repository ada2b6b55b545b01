"""A mapping whose values are made when the first of them is read."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from functools import cached_property
from typing import TypeVar

_V = TypeVar("_V")


class LazyMapping(Mapping[str, _V]):
    """Make all values late: there may be ten thousand, and mostly nobody reads one.

    Subclasses say what the keys are and how the values are made.
    """

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def _make(self) -> dict[str, _V]:
        """Make all values, for the keys in their order."""
        raise NotImplementedError

    @cached_property
    def _made(self) -> dict[str, _V]:
        return self._make()

    def __getitem__(self, key: str) -> _V:
        return self._made[key]

    def items(self) -> ItemsView[str, _V]:
        """Return keys and values."""
        return self._made.items()

    def values(self) -> ValuesView[_V]:
        """Return the values."""
        return self._made.values()
