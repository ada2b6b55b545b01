"""A mapping that makes its values when the first of them is read."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from functools import cached_property
from typing import TypeVar

_V = TypeVar("_V")


class LazyMapping(Mapping[str, _V]):
    """Make all values when one is read: there may be ten thousand, and often none is read.

    Subclasses say what the keys are and how the values are made.
    """

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def _make_values(self) -> dict[str, _V]:
        """Make all values, in the order of the keys."""
        raise NotImplementedError

    @cached_property
    def _content(self) -> dict[str, _V]:
        return self._make_values()

    def __getitem__(self, key: str) -> _V:
        return self._content[key]

    def items(self) -> ItemsView[str, _V]:
        """Return keys and values."""
        return self._content.items()

    def values(self) -> ValuesView[_V]:
        """Return the values."""
        return self._content.values()
