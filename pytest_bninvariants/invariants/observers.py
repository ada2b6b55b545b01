"""Hear from torch what happens in this process, for whoever watches at the moment.

Nothing is put on a user's objects, so copies, pickles and scripts of a model that are taken inside
a step are clean. While somebody watches, a few functions of torch are wrapped, `Module.__call__`
first of all, and `torch.optim`'s global step hook is used. All of it is off while dynamo compiles,
so that guarded and bare runs compile the same graphs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from pytest_bninvariants.invariants.normalisation import has_known_forward, uses_batch_statistics
from pytest_bninvariants.invariants.patches import Patch, Patches, Switch
from pytest_bninvariants.invariants.selection import is_bn_layer

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Function = Callable[..., Any]
_USES_BATCH = 5  # position of `training` in torch.batch_norm, `use_input_stats` in instance_norm


class Observer(Protocol):
    """Whoever wants to hear."""

    def saw_forward(self, module: nn.Module) -> None:
        """Hear of a module that is about to be called."""

    def saw_batch_statistics(self, layer: nn.Module) -> None:
        """Hear of a BN layer that normalises, or tried to, with batch statistics."""

    def saw_training_set(self, module: nn.Module, frame: FrameType) -> None:
        """Hear of `module.training = True`, before it is so, in this frame."""

    def saw_optimizer_step(self, optimizer: Optimizer) -> None:
        """Hear of an optimizer that has stepped."""

    def saw_compiled_code(self) -> None:
        """Hear that dynamo compiles, or that code runs that it may have compiled."""


class _Observers:
    """Keep the observers, and the wrappers in place while there are any."""

    def __init__(self) -> None:
        self.present: tuple[Observer, ...] = ()
        self._lock = threading.RLock()
        self._unhook: _Function | None = None
        self._patches = Patches(
            Patch(nn.Module, "__setattr__", _observing_setattr),
            Patch(nn.Module, "__call__", _observing_call),
            *_dynamos_patches(),
        )

    def add(self, observer: Observer) -> None:
        with self._lock:
            if not self.present and _dynamo is not None:
                _dynamo.register_start_callback(self._step_aside)
                _dynamo.register_end_callback(self._install)
            self.present = (*self.present, observer)
            self._install()

    def discard(self, observer: Observer) -> None:
        with self._lock:
            if observer not in self.present:
                return
            self.present = tuple(other for other in self.present if other is not observer)
            if not self.present:
                self._uninstall()
                self._forget_dynamo()

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
            if self.present:
                self._patches.install()
                _listeners.resume()
                if self._unhook is None:
                    self._unhook = register_optimizer_step_post_hook(_after_optimizer_step).remove

    def _uninstall(self) -> None:
        with self._lock:
            _listeners.suspend()
            self._patches.remove()
            if self._unhook is not None:
                self._unhook()
                self._unhook = None

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


@dataclass(slots=True)
class _Running:
    """A BN layer whose forward runs.

    Args:
        layer: the layer.
        heard: whether it has called one of torch's normalising functions.
    """

    layer: nn.Module
    heard: bool = False


class _Listeners:
    """Hear what BN layers normalise with, from the calls that they make while they run.

    What a layer calls decides, not its mode: hooks may change that between the call and the
    forward, and a forward of a user's own may do as it likes. The mode decides only where a forward
    of torch's own made no such call, because it raised before, or because it does without.
    """

    def __init__(self) -> None:
        self._running = threading.local()
        self._lock = threading.Lock()
        self._count = 0
        self._patches = Patches(
            Patch(torch, "batch_norm", _observing_batch_norm),
            Patch(torch, "instance_norm", _observing_instance_norm),
        )

    def enter(self, layer: nn.Module) -> None:
        """Begin to listen to a layer that is about to run."""
        self._stack().append(_Running(layer))
        self._count_by(1)

    def leave(self) -> None:
        """End what `enter` began."""
        self._count_by(-1)
        ended = self._stack().pop()
        if not ended.heard and has_known_forward(ended.layer):
            self._tell(ended.layer, uses_batch_statistics(ended.layer))

    def heard(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
        """Take note of a normalising call's arguments."""
        stack = self._stack()
        if stack:
            stack[-1].heard = True
            batch = args[_USES_BATCH] if len(args) > _USES_BATCH else kwargs.get(name)
            self._tell(stack[-1].layer, bool(batch))

    def suspend(self) -> None:
        """Take the wrappers off for a while."""
        with self._lock:
            self._patches.remove()

    def resume(self) -> None:
        """Put them back if any layer runs."""
        self._count_by(0)

    def _count_by(self, step: int) -> None:
        with self._lock:
            self._count += step
            if self._count:
                self._patches.install()
            else:
                self._patches.remove()

    def _stack(self) -> list[_Running]:
        if not hasattr(self._running, "stack"):
            self._running.stack = []
        stack: list[_Running] = self._running.stack
        return stack

    @staticmethod
    def _tell(layer: nn.Module, uses_batch: bool) -> None:
        if uses_batch:
            for observer in _observers.present:
                observer.saw_batch_statistics(layer)


def _unseen(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep dynamo, which may be running what calls a function, from compiling it."""
    hidden: Callable[_P, _R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return hidden


@_unseen
def _tell_training_set(module: nn.Module, frame: FrameType) -> None:
    for observer in _observers.present:
        observer.saw_training_set(module, frame)


@_unseen
def _before_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell of a call; return whether `_after_call` must follow."""
    for observer in _observers.present:
        observer.saw_forward(module)
    listens = is_bn_layer(module) and _has_values(args, kwargs)
    if listens:
        _listeners.enter(module)
    return listens


@_unseen
def _after_call() -> None:
    _listeners.leave()


@_unseen
def _tell_normalising(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
    _listeners.heard(args, kwargs, name)


@_unseen
def _after_optimizer_step(optimizer: Optimizer, *_: object) -> None:
    for observer in _observers.present:
        observer.saw_optimizer_step(optimizer)


def _tell_compiled_code() -> None:
    for observer in _observers.present:
        observer.saw_compiled_code()


def _has_values(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a forward is a real one, and not a tracer's on fake tensors."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    with torch._C.DisableTorchFunction():  # a user's mode is not to hear of our questions
        return not any(t.is_meta or type(t).__name__ == "FakeTensor" for t in tensors)


# Dynamo skips the wrappers themselves, but tries to compile what they call where a model is
# compiled in place. So they hold as little as they can, and call only what is `_unseen`. Export
# compiles without telling us beforehand: then dynamo finds them, and that they have nothing to do.


def _observing_setattr(original: _Function, switch: Switch) -> _Function:
    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: N807
        __tracebackhide__ = True
        if name == "training" and value and switch.on and not is_dynamo_compiling():
            _tell_training_set(self, sys._getframe(1))
        original(self, name, value)

    return __setattr__


def _observing_call(original: _Function, switch: Switch) -> _Function:
    def __call__(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        __tracebackhide__ = True
        quiet = not switch.on or is_dynamo_compiling()
        if quiet or not _before_call(self, args, kwargs):
            return original(self, *args, **kwargs)
        try:
            return original(self, *args, **kwargs)
        finally:
            _after_call()

    return __call__


def _observing_batch_norm(original: _Function, switch: Switch) -> _Function:
    def batch_norm(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if switch.on and not is_dynamo_compiling():
            _tell_normalising(args, kwargs, "training")
        return original(*args, **kwargs)

    return batch_norm


def _observing_instance_norm(original: _Function, switch: Switch) -> _Function:
    def instance_norm(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if switch.on and not is_dynamo_compiling():
            _tell_normalising(args, kwargs, "use_input_stats")
        return original(*args, **kwargs)

    return instance_norm


def _observing_eval_frame(original: _Function, switch: Switch) -> _Function:
    def set_eval_frame(callback: Any) -> Any:
        if switch.on and callback is not None and callback is not False:
            _tell_compiled_code()
        return original(callback)

    return set_eval_frame


def _observing_initialize(original: _Function, switch: Switch) -> _Function:
    def _initialize(self: nn.Module) -> None:
        with _observers.away():  # what torch.compile(model) returns holds on to model.__call__
            original(self)

    return _initialize


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
        _observing_batch_norm,
        _observing_instance_norm,
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
        (eval_frame.OptimizedModule, "_initialize", _observing_initialize),
    )
    return [Patch(owner, name, make) for owner, name, make in wanted if hasattr(owner, name)]


def sees_compiled_code() -> bool:
    """Tell whether this torch lets us see when compiled code runs."""
    from torch._dynamo import eval_frame

    return _dynamo is not None and hasattr(eval_frame, "set_eval_frame")


_dynamo = _find_dynamo()
_listeners = _Listeners()
_observers = _Observers()
add = _observers.add
discard = _observers.discard
