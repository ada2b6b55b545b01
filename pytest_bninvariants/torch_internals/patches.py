"""Wrap attributes of other people's classes and modules for a while."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch.torch_version import TorchVersion


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


MakeWrapper = Callable[[Callable[..., Any], Switch], Callable[..., Any]]
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
    make: MakeWrapper
    last: Callable[..., Any] | None = None
    made: _Wrapper | None = None

    def install(self) -> None:
        """Wrap what is there."""
        original = getattr(self.owner, self.name)
        made = self.made
        if self.last is None or made is None or made.original is not original:
            made = self.made = _Wrapper(original, Switch(on=False), original in _ours)
            self.last = self.make(original, made.switch)
            _show(self.last, original)
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


class Swap:
    """A way to wrap a method of torch's: its function gets other code, its class stays as it is.

    To set an attribute of `nn.Module` makes Python forget what it knows of all its subclasses; that
    takes longer than the rest of a guard around a small model, and Python 3.13 no longer learns it
    anew after a thousand times. Where somebody else's function is in the method's place, it is
    wrapped as a patch does.

    Args:
        owner: the class.
        name: the method's name.
        make: as a patch's.
    """

    def __init__(self, owner: type, name: str, make: MakeWrapper) -> None:
        self.owner = owner
        self.name = name
        self._patch = Patch(owner, name, make)
        self._make = make
        self._switch = Switch(on=False)
        self._function: FunctionType | None = None
        self._theirs: CodeType | None = None
        self._original: FunctionType | None = None
        self._ours: CodeType | None = None

    def install(self) -> None:
        """Wrap what is there."""
        there = vars(self.owner).get(self.name)
        if not _is_torchs(there):
            self._patch.install()
            return
        if there is not self._function or there.__code__ is not self._theirs:
            self._prepare(there)
        assert self._ours is not None
        self._switch.on = True
        there.__code__ = self._ours
        _show(there, self._original)

    def _prepare(self, function: FunctionType) -> None:
        """Make the wrapper, which serves again, and the code that calls it."""
        code, called = function.__code__, f"_{__name__.partition('.')[0]}_{self.name}"
        original = FunctionType(
            code,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        original.__kwdefaults__ = function.__kwdefaults__
        original.__annotations__ = function.__annotations__
        self._switch = Switch(on=False)
        function.__globals__[called] = self._make(original, self._switch)
        self._function, self._theirs, self._original = function, code, original
        self._ours = _calling(called).replace(
            co_name=code.co_name, co_qualname=code.co_qualname, co_freevars=code.co_freevars
        )

    def remove(self) -> None:
        """Give the function its own code back, or take the wrapper off."""
        if not self._switch.on:
            self._patch.remove()
            return
        assert self._function is not None
        assert self._theirs is not None
        self._switch.on = False
        self._function.__code__ = self._theirs
        vars(self._function).pop("__wrapped__", None)


def around_method(owner: type, name: str, make: MakeWrapper) -> Patch | Swap:
    """Return a way to wrap a method of torch's.

    In torch 2.4 what `torch.compile` compiled checks the code of `Module.__setattr__`, and would be
    compiled anew; from 2.13 on it does not.
    """
    return (Swap if TorchVersion(torch.__version__) >= "2.13" else Patch)(owner, name, make)


def _show(wrapper: Any, original: object) -> None:
    """Have `inspect` show a wrapper's original: libraries ask for a method's parameters."""
    wrapper.__wrapped__ = original


def _is_torchs(function: object) -> TypeGuard[FunctionType]:
    return isinstance(function, FunctionType) and function.__module__.startswith("torch.")


def _calling(name: str) -> CodeType:
    """Return the code of a method that calls a global function in its place."""
    source = f"""
def method(self, /, *args, **kwargs):
    __tracebackhide__ = True
    return {name}(self, *args, **kwargs)
"""
    module = compile(source, __file__, "exec")
    return next(each for each in module.co_consts if isinstance(each, CodeType))


def caller() -> FrameType | None:
    """Return the frame that called what is wrapped; its wrapper asks."""
    frame = sys._getframe(2)
    return frame.f_back if frame.f_code.co_filename == __file__ else frame


class Patches:
    """Several patches that are on and off together.

    Args:
        patches: the patches.
    """

    def __init__(self, *patches: Patch | Swap) -> None:
        self._patches = patches
        self._installed: list[Patch | Swap] = []

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
