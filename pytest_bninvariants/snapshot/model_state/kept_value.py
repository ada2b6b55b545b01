"""What an object, list, dict or set holds, kept to compare it later and to put it back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import is_
from typing import Any

from pytest_bninvariants.attributes import attributes_of, write_attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptValue:
    """A value that can change in place, and what it held.

    Args:
        path: where it is in the model.
        held: what it held, by name or position.
        read: returns what it holds now.
        write: gives it what it held.
    """

    path: str
    held: dict[Any, object]
    read: Callable[[], dict[Any, object]]
    write: Callable[[], object]

    @classmethod
    def of_object(cls, path: str, value: object) -> KeptValue:
        """Keep the attributes of an object."""
        held = attributes_of(value)
        return cls(
            path=path,
            held=held,
            read=lambda: attributes_of(value),
            write=lambda: write_attributes(value, held),
        )

    @classmethod
    def of_dict(cls, path: str, value: dict[Any, object]) -> KeptValue:
        """Keep what a dict holds."""
        held = dict(value)

        def write() -> None:
            value.clear()
            value.update(held)

        return cls(path=path, held=held, read=lambda: dict(value), write=write)

    @classmethod
    def of_list(cls, path: str, value: list[Any] | deque[Any]) -> KeptValue:
        """Keep what a list holds."""
        held = dict(enumerate(value))

        def write() -> None:
            value.clear()
            value.extend(held.values())

        return cls(path=path, held=held, read=lambda: dict(enumerate(value)), write=write)

    @classmethod
    def of_set(cls, path: str, value: set[Any]) -> KeptValue:
        """Keep what a set holds."""
        held = {id(part): part for part in value}

        def write() -> None:
            value.clear()
            value.update(held.values())

        return cls(
            path=path, held=held, read=lambda: {id(part): part for part in value}, write=write
        )

    def changed(self) -> list[Any]:
        """Return the names or positions that hold other objects now."""
        held, now = self.held, self.read()
        if held.keys() == now.keys() and all(map(is_, held.values(), map(now.get, held))):
            return []
        names = dict.fromkeys([*held, *now])
        return [n for n in names if n not in held or n not in now or held[n] is not now[n]]
