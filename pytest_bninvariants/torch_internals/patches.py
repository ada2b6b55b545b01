"""Wrap attributes of torch's classes and modules for a while."""

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
    """Whether a wrapper does its work, or only calls what it wraps."""

    on: bool


@dataclass(slots=True, frozen=True)
class _Wrapping:
    """What one of our wrappers wraps.

    Args:
        original: the function that it wraps.
        switch: the switch that it obeys.
        nested: whether that function is itself one of our wrappers.
    """

    original: Callable[..., Any]
    switch: Switch
    nested: bool


MakeWrapper = Callable[[Callable[..., Any], Switch], Callable[..., Any]]
_wrappings: WeakKeyDictionary[Callable[..., Any], _Wrapping] = WeakKeyDictionary()
"""All our wrappers that are alive, on or off."""


@dataclass(slots=True)
class Patch:
    """Wrap one attribute for a while.

    Args:
        owner: the class or module that has it.
        name: its name.
        make: makes a wrapper from the original and a switch that the wrapper must obey.
        wrapper: the latest wrapper; it is reused while the original is the same, since some patches
            come and go with each forward.
        wrapping: what the latest wrapper wraps.
    """

    owner: object
    name: str
    make: MakeWrapper
    wrapper: Callable[..., Any] | None = None
    wrapping: _Wrapping | None = None

    def install(self) -> None:
        """Wrap the attribute's current value."""
        original = getattr(self.owner, self.name)
        wrapping = self.wrapping
        if self.wrapper is None or wrapping is None or wrapping.original is not original:
            nested = original in _wrappings
            wrapping = self.wrapping = _Wrapping(original, Switch(on=False), nested)
            self.wrapper = self.make(original, wrapping.switch)
            _show_original(self.wrapper, original)
            _wrappings[self.wrapper] = wrapping
        wrapping.switch.on = True
        setattr(self.owner, self.name, self.wrapper)

    def remove(self) -> None:
        """Take the wrapper off.

        If somebody has wrapped our wrapper in the meantime, ours stays inside theirs, switched off.
        If they put ours back, the next removal takes it off.
        """
        wrapping = self.wrapping
        assert wrapping is not None
        wrapping.switch.on = False
        current = getattr(self.owner, self.name)
        if current is self.wrapper and not wrapping.nested:
            setattr(self.owner, self.name, wrapping.original)
            return
        while current in _wrappings and not _wrappings[current].switch.on:
            current = _wrappings[current].original
            setattr(self.owner, self.name, current)


class CodeSwap:
    """Wrap one of torch's methods for a while, by swapping its function's code.

    Setting an attribute of `nn.Module` invalidates the attribute caches of all its subclasses. That
    takes longer than the rest of a guard around a small model. From Python 3.13 on, a class even
    gets no more version tags after a thousand changes, so that its attributes are never cached
    again (MAX_VERSIONS_PER_CLASS in CPython's Objects/typeobject.c).

    If somebody else's function has replaced the method, a `Patch` wraps that.

    Args:
        owner: the class.
        name: the method's name.
        make: makes a wrapper, as for a `Patch`.
    """

    def __init__(self, owner: type, name: str, make: MakeWrapper) -> None:
        self.owner = owner
        self.name = name
        self._patch = Patch(owner, name, make)
        self._make = make
        self._switch = Switch(on=False)
        self._function: FunctionType | None = None
        self._own_code: CodeType | None = None
        self._original: FunctionType | None = None
        self._wrapping_code: CodeType | None = None

    def install(self) -> None:
        """Swap the code of the owner's method, or wrap the method with a `Patch`."""
        function = vars(self.owner).get(self.name)
        if not _is_torchs(function):
            self._patch.install()
            return
        if function is not self._function or function.__code__ is not self._own_code:
            self._prepare(function)
        assert self._wrapping_code is not None
        self._switch.on = True
        function.__code__ = self._wrapping_code
        _show_original(function, self._original)

    def _prepare(self, function: FunctionType) -> None:
        """Make the wrapper, and the code that calls it; later installations reuse both."""
        code = function.__code__
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
        wrapper = f"_{__name__.partition('.')[0]}_{self.name}"
        function.__globals__[wrapper] = self._make(original, self._switch)
        self._function, self._own_code, self._original = function, code, original
        self._wrapping_code = _code_that_calls(wrapper).replace(
            co_name=code.co_name, co_qualname=code.co_qualname, co_freevars=code.co_freevars
        )

    def remove(self) -> None:
        """Give the function its own code back, or take the `Patch` off."""
        if not self._switch.on:
            self._patch.remove()
            return
        assert self._function is not None
        assert self._own_code is not None
        self._switch.on = False
        self._function.__code__ = self._own_code
        vars(self._function).pop("__wrapped__", None)


class Shadow:
    """Shadow an attribute that a class inherits, for a while.

    Args:
        owner: the class.
        name: the attribute's name.
        value: what the class has under this name meanwhile.
    """

    def __init__(self, owner: type, name: str, value: object) -> None:
        self._owner, self._name, self._value = owner, name, value

    def install(self) -> None:
        """Shadow the attribute, unless the class has one of its own."""
        if self._name not in vars(self._owner):
            setattr(self._owner, self._name, self._value)

    def remove(self) -> None:
        """Let the class inherit the attribute again."""
        if vars(self._owner).get(self._name) is self._value:
            delattr(self._owner, self._name)


def wrap_method(owner: type, name: str, make: MakeWrapper) -> Patch | CodeSwap:
    """Return what wraps one of torch's methods.

    In torch 2.4, code that `torch.compile` compiled guards on the code of `Module.__setattr__`, and
    would be recompiled if that were swapped; from 2.13 on it does not.
    """
    can_swap = TorchVersion(torch.__version__) >= "2.13"
    return CodeSwap(owner, name, make) if can_swap else Patch(owner, name, make)


def _show_original(wrapper: Any, original: object) -> None:
    """Have `inspect` show a wrapper's original: libraries inspect a method's parameters."""
    wrapper.__wrapped__ = original


def _is_torchs(function: object) -> TypeGuard[FunctionType]:
    return isinstance(function, FunctionType) and function.__module__.startswith("torch.")


def _code_that_calls(name: str) -> CodeType:
    """Return the code of a method that calls a global function instead."""
    source = f"""
def method(self, /, *args, **kwargs):
    __tracebackhide__ = True
    return {name}(self, *args, **kwargs)
"""
    module = compile(source, __file__, "exec")
    return next(each for each in module.co_consts if isinstance(each, CodeType))


def caller() -> FrameType | None:
    """Return the frame that called the wrapped function; only a wrapper may call this."""
    frame = sys._getframe(2)
    return frame.f_back if frame.f_code.co_filename == __file__ else frame


class Patches:
    """Several patches that are installed and removed together.

    Args:
        patches: the patches.
    """

    def __init__(self, *patches: Patch | CodeSwap | Shadow) -> None:
        self._patches = patches
        self._installed: list[Patch | CodeSwap | Shadow] = []

    def install(self) -> None:
        """Install all of them, unless they are installed."""
        if not self._installed:
            for patch in self._patches:
                patch.install()
                self._installed.append(patch)

    def remove(self) -> None:
        """Remove all of them."""
        while self._installed:
            self._installed.pop().remove()
