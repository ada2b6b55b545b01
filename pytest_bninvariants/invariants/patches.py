"""Wrap attributes of other people's classes and modules for a while."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(slots=True)
class Switch:
    """Whether a wrapper does its work, or passes all on."""

    on: bool


_ours: WeakKeyDictionary[Callable[..., Any], tuple[Callable[..., Any], Switch]] = (
    WeakKeyDictionary()
)


@dataclass(slots=True)
class Patch:
    """A way to wrap one attribute.

    Args:
        owner: the class or module that has it.
        name: its name.
        make: makes a wrapper from the original and a switch that the wrapper must obey.
        last: the wrapper that was made last, which serves again: some are on and off all the time.
    """

    owner: object
    name: str
    make: Callable[[Callable[..., Any], Switch], Callable[..., Any]]
    last: Callable[..., Any] | None = None

    def install(self) -> Callable[[], None]:
        """Wrap what is there, and return what takes the wrapper off.

        Where somebody has put a wrapper around ours in the meantime, ours stays below it, switched
        off. If they put ours back, it goes when the next of ours does.
        """
        original = getattr(self.owner, self.name)
        if self.last is None or _ours[self.last][0] is not original:
            switch = Switch(on=False)
            self.last = self.make(original, switch)
            _ours[self.last] = original, switch
        switch = _ours[self.last][1]
        switch.on = True
        setattr(self.owner, self.name, self.last)

        def undo() -> None:
            switch.on = False
            current = getattr(self.owner, self.name)
            while current in _ours and not _ours[current][1].on:
                current = _ours[current][0]
                setattr(self.owner, self.name, current)

        return undo


class Patches:
    """Several patches that are on and off together.

    Args:
        patches: the patches.
    """

    def __init__(self, *patches: Patch) -> None:
        self._patches = patches
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Put all of them on, unless they are."""
        if not self._undo:
            self._undo = [patch.install() for patch in self._patches]

    def remove(self) -> None:
        """Take all of them off."""
        while self._undo:
            self._undo.pop()()
