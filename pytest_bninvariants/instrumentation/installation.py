"""Hear from torch what happens in this process, for whoever watches at the moment.

Nothing is put on a user's objects, so copies, pickles and scripts of a model that are taken inside
a step are clean. While somebody watches, a few functions of torch are wrapped, `Module._call_impl`
first of all, and `torch.optim`'s global step hooks are used. All of it is off while dynamo
compiles, so that guarded and bare runs compile the same graphs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from pytest_bninvariants.instrumentation import observer_api, write_hooks
from pytest_bninvariants.instrumentation.norm_calls import (
    listeners,
)
from pytest_bninvariants.instrumentation.observer_api import Observer
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.snapshot.tensor_bytes import have_values
from pytest_bninvariants.torch_internals import dynamo, private_api
from pytest_bninvariants.torch_internals.dynamo import hidden_from_dynamo, skipped_by_dynamo
from pytest_bninvariants.torch_internals.patches import (
    Patch,
    Patches,
    Switch,
    around_method,
    caller,
)

_Function = Callable[..., Any]


class _Observers:
    """Keep the observers, and the wrappers in place while there are any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._unhook: list[Callable[[], None]] = []
        self._all: tuple[Observer, ...] = ()
        self._alone: list[tuple[Observer, ...]] = []
        self._patches = Patches(
            around_method(nn.Module, "__setattr__", _observing_setattr),
            Patch(nn.Module, "_call_impl", _observing_call),
            Patch(nn.Module, "compile", _observing_compile),
            *write_hooks.patches(),
            *dynamo.patches(_observing_eval_frame, _observing_compile),
        )

    def add(self, observer: Observer) -> None:
        with self._lock:
            if not self._all:
                private_api.require(private_api.A_GUARD)
                dynamo.add_compile_callbacks(self._step_aside, self._install)
            self._set((*self._all, observer))
            self._install()

    def discard(self, observer: Observer) -> None:
        with self._lock:
            if observer not in self._all:
                return
            self._set(tuple(other for other in self._all if other is not observer))
            if not self._all:
                self._uninstall()
                dynamo.remove_compile_callbacks(self._step_aside, self._install)
                write_hooks.forget_steps()
                listeners.come_back()  # from compiled code that ran within what is over

    def _set(self, everybody: tuple[Observer, ...]) -> None:
        self._all = everybody
        observer_api.active_observers = self._alone[-1] if self._alone else everybody

    @contextmanager
    def heard_only_by(self, *observers: Observer) -> Iterator[None]:
        """Have these hear what happens, and nobody else, for a while."""
        with self._lock:
            for observer in observers:
                self.add(observer)
            self._alone.append(observers)
            self._set(self._all)
        try:
            yield
        finally:
            with self._lock:  # others may have come and gone in other threads
                self._alone.remove(observers)
                self._set(self._all)
                for observer in observers:
                    self.discard(observer)
                self._install()  # dynamo may have had the wrappers off when nobody was there

    @contextmanager
    def away(self) -> Iterator[None]:
        """Take the wrappers off for a moment."""
        self._uninstall()
        try:
            yield
        finally:
            self._install()

    def _install(self, *_: object) -> None:
        with self._lock:
            if self._all:
                self._patches.install()
                listeners.resume()
                if observer_api.steps_are_observed() and not self._unhook:
                    self._unhook = write_hooks.hook_optimizers()

    def _uninstall(self) -> None:
        with self._lock:
            listeners.suspend()
            self._patches.remove()
            while self._unhook:
                self._unhook.pop()()

    def _step_aside(self, *_: object) -> None:
        _tell_compiled_code()
        self._uninstall()


@hidden_from_dynamo
def _tell_mode_set(module: nn.Module, training: Any, frame: FrameType | None) -> None:
    assert frame is not None
    for observer in observer_api.active_observers:
        observer.saw_mode_set(module, bool(training), frame)


@hidden_from_dynamo
def _before_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell of a call; return whether `_after_call` must follow."""
    if listeners.aside and not dynamo.dynamo_runs():
        listeners.come_back()
    for observer in observer_api.active_observers:
        observer.saw_forward(module)
    is_layer = is_bn_layer(module)
    observed = is_layer and any(
        observer.observes_layer(module) for observer in observer_api.active_observers
    )
    if not (observed or listeners.listening or observer_api.calls_are_observed()):
        return False
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return _have_values(tensors) and listeners.enter(module, tensors, is_layer=is_layer)


@hidden_from_dynamo
def _after_call(*, failed: bool) -> None:
    listeners.leave(failed=failed)


def _tell_compiled_code() -> None:
    for observer in observer_api.active_observers:
        observer.saw_compiled_code()


@hidden_from_dynamo
def _tell_compiled_in_place(frame: FrameType | None) -> None:
    """Tell of the module that runs compiled code in place of the method that is wrapped."""
    while frame is not None and frame.f_globals.get("__name__") == dynamo.EVAL_FRAME:
        frame = frame.f_back
    if frame is not None and frame.f_code is private_api.call_code:
        module = frame.f_locals["self"]
        for observer in observer_api.active_observers:
            observer.saw_forward(module)


def _have_values(tensors: list[Tensor]) -> bool:
    """Tell whether a forward is a real one, and not a tracer's on fake tensors."""
    with private_api.DisableTorchFunction():  # a user's mode is not to hear of our questions
        return have_values(tensors)


# Dynamo skips the wrappers themselves, but where a model is compiled in place it tries to compile
# what they call. So they do as little as they can, and call only what is `hidden_from_dynamo`.
# Export compiles without telling us beforehand: then dynamo finds that they have nothing to do.


def _observing_setattr(original: _Function, switch: Switch) -> _Function:
    @skipped_by_dynamo
    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: N807
        __tracebackhide__ = True
        if name == "training" and switch.on and not is_dynamo_compiling():
            _tell_mode_set(self, value, caller())
        original(self, name, value)

    return __setattr__


def _observing_call(original: _Function, switch: Switch) -> _Function:
    @skipped_by_dynamo
    def _call_impl(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        quiet = not switch.on or is_dynamo_compiling()
        if quiet or not (observer_api.is_observed(self) or listeners.listening):
            return original(self, *args, **kwargs)
        if not _before_call(self, args, kwargs):
            return original(self, *args, **kwargs)
        failed = True
        try:
            result = original(self, *args, **kwargs)
            failed = False
        finally:
            _after_call(failed=failed)
        return result

    return _call_impl


def _observing_eval_frame(original: _Function, switch: Switch) -> _Function:
    @skipped_by_dynamo
    def set_eval_frame(callback: Any) -> Any:
        if switch.on and callback is not None and callback is not False:
            _tell_compiled_code()
            _tell_compiled_in_place(sys._getframe(1))
            listeners.step_aside(sys._getframe(1))
        elif switch.on:
            listeners.come_back_from(sys._getframe(1))
        return original(callback)

    return set_eval_frame


def _observing_compile(original: _Function, switch: Switch) -> _Function:
    def compile(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _observers.away():  # what is compiled holds on to the method that it is to call
            return original(self, *args, **kwargs)

    return compile


_observers = _Observers()
add = _observers.add
discard = _observers.discard
heard_only_by = _observers.heard_only_by


class Watcher(Observer):
    """An observer that begins and ends by itself."""

    def start(self) -> None:
        """Begin to watch."""
        add(self)

    def stop(self) -> None:
        """Watch no longer; harmless where it does not watch."""
        discard(self)
