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

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from pytest_bninvariants.instrumentation import observer_api, write_hooks
from pytest_bninvariants.instrumentation.norm_calls import (
    listeners,
    observing_batch_norm,
    observing_instance_norm,
)
from pytest_bninvariants.instrumentation.observer_api import Observer
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.snapshot.tensor_bytes import have_values
from pytest_bninvariants.torch_internals import dynamo
from pytest_bninvariants.torch_internals.dynamo import unseen
from pytest_bninvariants.torch_internals.patches import (
    Patch,
    Patches,
    Switch,
    around_method,
    caller,
)

_Function = Callable[..., Any]
_CALL = nn.Module._wrapped_call_impl.__code__  # nn.Module.__call__, unless somebody wrapped it
_EVAL_FRAME = "torch._dynamo.eval_frame"


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
            *_dynamos_patches(),
        )

    def add(self, observer: Observer) -> None:
        with self._lock:
            if not self._all and _dynamo is not None:
                _dynamo.register_start_callback(self._step_aside)
                _dynamo.register_end_callback(self._install)
            self._set((*self._all, observer))
            self._install()

    def discard(self, observer: Observer) -> None:
        with self._lock:
            if observer not in self._all:
                return
            self._set(tuple(other for other in self._all if other is not observer))
            if not self._all:
                self._uninstall()
                self._forget_dynamo()
                write_hooks.forget_steps()
                listeners.come_back()  # from compiled code that ran within what is over

    def _set(self, everybody: tuple[Observer, ...]) -> None:
        self._all = everybody
        observer_api.present = self._alone[-1] if self._alone else everybody

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
                if observer_api.hears_steps() and not self._unhook:
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

    def _forget_dynamo(self) -> None:
        if _dynamo is not None:
            for callbacks, ours in (
                (_dynamo.start_callbacks, self._step_aside),
                (_dynamo.end_callbacks, self._install),
            ):
                if ours in callbacks:  # the user's step may have cleared them
                    callbacks.remove(ours)


@unseen
def _tell_mode_set(module: nn.Module, training: Any, frame: FrameType | None) -> None:
    assert frame is not None
    for observer in observer_api.present:
        observer.saw_mode_set(module, bool(training), frame)


@unseen
def _before_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell of a call; return whether `_after_call` must follow."""
    if listeners.aside and not dynamo.dynamo_runs():
        listeners.come_back()
    for observer in observer_api.present:
        observer.saw_forward(module)
    is_layer = is_bn_layer(module)
    heeded = is_layer and any(observer.heeds(module) for observer in observer_api.present)
    if not (heeded or listeners.listening or observer_api.hears_calls()):
        return False
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return _have_values(tensors) and listeners.enter(module, tensors, is_layer=is_layer)


@unseen
def _after_call(*, failed: bool) -> None:
    listeners.leave(failed=failed)


def _tell_compiled_code() -> None:
    for observer in observer_api.present:
        observer.saw_compiled_code()


@unseen
def _tell_compiled_in_place(frame: FrameType | None) -> None:
    """Tell of the module that runs compiled code in place of the method that is wrapped."""
    while frame is not None and frame.f_globals.get("__name__") == _EVAL_FRAME:
        frame = frame.f_back
    if frame is not None and frame.f_code is _CALL:
        module = frame.f_locals["self"]
        for observer in observer_api.present:
            observer.saw_forward(module)


def _have_values(tensors: list[Tensor]) -> bool:
    """Tell whether a forward is a real one, and not a tracer's on fake tensors."""
    with torch._C.DisableTorchFunction():  # a user's mode is not to hear of our questions
        return have_values(tensors)


# Dynamo skips the wrappers themselves, but tries to compile what they call where a model is
# compiled in place. So they hold as little as they can, and call only what is `unseen`. Export
# compiles without telling us beforehand: then dynamo finds them, and that they have nothing to do.


def _observing_setattr(original: _Function, switch: Switch) -> _Function:
    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: N807
        __tracebackhide__ = True
        if name == "training" and switch.on and not is_dynamo_compiling():
            _tell_mode_set(self, value, caller())
        original(self, name, value)

    return __setattr__


def _observing_call(original: _Function, switch: Switch) -> _Function:
    def _call_impl(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        quiet = not switch.on or is_dynamo_compiling()
        if quiet or not (observer_api.is_heard(self) or listeners.listening):
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


def _find_dynamo() -> Any:
    """Return dynamo's callback handler, and have dynamo skip our wrappers.

    Both are private to torch. Where they are missing, guarded runs are judged as before, but may
    compile more graphs than bare ones. They are imported with this module, and not when the first
    step begins: that takes a second, and hypothesis may be timing the step.
    """
    try:
        from torch._dynamo.callback import callback_handler
        from torch._dynamo.eval_frame import skip_code
    except ImportError:
        return None
    for make in (
        _observing_setattr,
        _observing_call,
        observing_batch_norm,
        observing_instance_norm,
        _observing_eval_frame,
    ):
        skip_code(make(print, Switch(on=False)).__code__)
    return callback_handler


def _dynamos_patches() -> list[Patch]:
    """Return what tells when compiled code runs, as far as this torch has it."""
    from torch._dynamo import eval_frame

    wanted = (
        (eval_frame, "set_eval_frame", _observing_eval_frame),
        (eval_frame, "_maybe_set_eval_frame", _observing_eval_frame),
        (eval_frame.OptimizedModule, "_initialize", _observing_compile),
    )
    return [Patch(owner, name, make) for owner, name, make in wanted if hasattr(owner, name)]


def sees_compiled_code() -> bool:
    """Tell whether this torch lets us see when compiled code runs."""
    from torch._dynamo import eval_frame

    return _dynamo is not None and hasattr(eval_frame, "set_eval_frame")


_dynamo = _find_dynamo()
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
