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


@dataclass(slots=True, frozen=True)
class _Wrapper:
    """A wrapper that was made.

    Args:
        original: what it wraps.
        switch: the switch that it obeys.
        nested: whether what it wraps is itself a wrapper of ours.
    """

    original: Callable[..., Any]
    switch: Switch
    nested: bool


_ours: WeakKeyDictionary[Callable[..., Any], _Wrapper] = WeakKeyDictionary()


@dataclass(slots=True)
class Patch:
    """A way to wrap one attribute.

    Args:
        owner: the class or module that has it.
        name: its name.
        make: makes a wrapper from the original and a switch that the wrapper must obey.
        last: the wrapper that was made last, which serves again: some are on and off all the time.
        made: what is known of it.
    """

    owner: object
    name: str
    make: Callable[[Callable[..., Any], Switch], Callable[..., Any]]
    last: Callable[..., Any] | None = None
    made: _Wrapper | None = None

    def install(self) -> None:
        """Wrap what is there."""
        original = getattr(self.owner, self.name)
        made = self.made
        if self.last is None or made is None or made.original is not original:
            made = self.made = _Wrapper(original, Switch(on=False), original in _ours)
            self.last = self.make(original, made.switch)
            _ours[self.last] = made
        made.switch.on = True
        setattr(self.owner, self.name, self.last)

    def remove(self) -> None:
        """Take the wrapper off.

        Where somebody has put a wrapper around ours in the meantime, ours stays below it, switched
        off. If they put ours back, it goes when the next of ours does.
        """
        made = self.made
        assert made is not None
        made.switch.on = False
        current = getattr(self.owner, self.name)
        if current is self.last and not made.nested:
            setattr(self.owner, self.name, made.original)
            return
        while current in _ours and not _ours[current].switch.on:
            current = _ours[current].original
            setattr(self.owner, self.name, current)


class Patches:
    """Several patches that are on and off together.

    Args:
        patches: the patches.
    """

    def __init__(self, *patches: Patch) -> None:
        self._patches = patches
        self._installed: list[Patch] = []

    def install(self) -> None:
        """Put all of them on, unless they are."""
        if not self._installed:
            for patch in self._patches:
                patch.install()
                self._installed.append(patch)

    def remove(self) -> None:
        """Take all of them off."""
        while self._installed:
            self._installed.pop().remove()
