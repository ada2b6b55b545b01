"""Map modules to values while the modules live."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import nn

_V = TypeVar("_V")


class ModuleMap(Generic[_V]):
    """Map modules to values by identity, since a module may define its own equality.

    An entry goes when its module dies, so that a later object with the same id has none.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[nn.Module], _V]] = {}

    def __contains__(self, module: nn.Module) -> bool:
        return id(module) in self._entries

    def get(self, module: nn.Module | None) -> _V | None:
        """Return a module's value, if it has one."""
        entry = self._entries.get(id(module))
        return None if entry is None else entry[1]

    def add(self, module: nn.Module, value: _V) -> None:
        """Give a module a value."""
        key, entries = id(module), self._entries

        def forget(_: object) -> None:
            entries.pop(key, None)

        entries[key] = weakref.ref(module, forget), value
