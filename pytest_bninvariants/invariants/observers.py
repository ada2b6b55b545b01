"""Hear from torch what happens in this process, for whoever watches at the moment.

Nothing is put on a user's objects, so copies, pickles and scripts of a model that are taken inside
a step are clean. While somebody watches, `Module.__call__` and `Module.__setattr__` are wrapped and
`torch.optim`'s global step hook is used. All of it is off while dynamo compiles, so that guarded
and bare runs compile the same graphs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from pytest_bninvariants.invariants.normalisation import has_known_forward, uses_batch_statistics
from pytest_bninvariants.invariants.selection import is_bn_layer

_USES_BATCH = (
    5  # position of `training` and `use_input_stats` in torch.batch_norm, torch.instance_norm
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Observer(Protocol):
    """Whoever wants to hear; each method is called before what it tells of happens."""

    def saw_forward(self, module: nn.Module) -> None:
        """Hear of a module that is called."""

    def saw_batch_statistics(self, layer: nn.Module) -> None:
        """Hear of a BN layer that normalises with batch statistics."""

    def saw_training_set(self, module: nn.Module, frame: FrameType) -> None:
        """Hear of `module.training = True`, in this frame."""

    def saw_optimizer_step(self, optimizer: Optimizer) -> None:
        """Hear of an optimizer that has stepped."""

    def saw_compilation(self) -> None:
        """Hear that dynamo compiles."""


class _Observers:
    """Keep the observers, and the wrappers in place while there are any."""

    def __init__(self) -> None:
        self.present: tuple[Observer, ...] = ()
        self._lock = threading.RLock()
        self._undo: list[Callable[[], None]] = []

    def add(self, observer: Observer) -> None:
        with self._lock:
            if not self.present:
                self._mind_dynamo()
            self.present = (*self.present, observer)
            self._install()

    def discard(self, observer: Observer) -> None:
        with self._lock:
            was_present = bool(self.present)
            self.present = tuple(other for other in self.present if other is not observer)
            if was_present and not self.present:
                self._uninstall()
                self._forget_dynamo()

    def _install(self, *_: object) -> None:
        with self._lock:
            if self.present and not self._undo:
                self._undo = [
                    register_optimizer_step_post_hook(_after_optimizer_step).remove,
                    _replace(nn.Module, "__setattr__", _observed_setattr),
                    _replace(nn.Module, "__call__", _observed_call),
                    _replace(OptimizedModule, "_initialize", _observed_initialize),
                ]

    def _uninstall(self) -> None:
        with self._lock:
            while self._undo:
                self._undo.pop()()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Take the wrappers off for a moment."""
        self._uninstall()
        try:
            yield
        finally:
            self._install()

    def _step_aside(self, *_: object) -> None:
        for observer in self.present:
            observer.saw_compilation()
        self._uninstall()

    def _mind_dynamo(self) -> None:
        if _dynamo is not None:
            _dynamo.register_start_callback(self._step_aside)
            _dynamo.register_end_callback(self._install)

    def _forget_dynamo(self) -> None:
        if _dynamo is not None:
            for callbacks, ours in (
                (_dynamo.start_callbacks, self._step_aside),
                (_dynamo.end_callbacks, self._install),
            ):
                if ours in callbacks:  # the user's step may have cleared them
                    callbacks.remove(ours)


class _Listeners:
    """Tell what the BN layers that run at the moment normalise with.

    For torch's own forwards the layer's flags decide. Other forwards may do as they like, whatever
    their mode says, so the calls that they make are watched: only while they run, because
    `torch.jit.script` would not accept a wrapped `torch.batch_norm`.
    """

    def __init__(self) -> None:
        self._running = threading.local()
        self._lock = threading.Lock()
        self._count = 0
        self._undo: list[Callable[[], None]] = []

    def enter(self, layer: nn.Module) -> None:
        """Begin to watch a BN layer that is about to run."""
        known = has_known_forward(layer)
        if known and uses_batch_statistics(layer):
            _tell_batch_statistics(layer)
        self._stack().append(None if known else layer)
        if not known:
            self._count_by(1)

    def leave(self) -> None:
        """End what `enter` began."""
        if self._stack().pop() is not None:
            self._count_by(-1)

    def heard(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
        """Take note of a normalising call's arguments."""
        stack = self._stack()
        batch = args[_USES_BATCH] if len(args) > _USES_BATCH else kwargs.get(name)
        if batch and stack and stack[-1] is not None:
            _tell_batch_statistics(stack[-1])

    def _stack(self) -> list[nn.Module | None]:
        if not hasattr(self._running, "stack"):
            self._running.stack = []
        stack: list[nn.Module | None] = self._running.stack
        return stack

    def _count_by(self, step: int) -> None:
        with self._lock:
            self._count += step
            if self._count == 0:
                while self._undo:
                    self._undo.pop()()
            elif not self._undo:
                self._undo = [
                    _replace(torch, "batch_norm", _observed_batch_norm),
                    _replace(torch, "instance_norm", _observed_instance_norm),
                ]


_observers = _Observers()
_listeners = _Listeners()
_originals: dict[str, Callable[..., Any]] = {}
add = _observers.add
discard = _observers.discard


def dynamo_has_compiled() -> bool:
    """Tell whether dynamo has compiled anything in this process since its last reset."""
    convert_frame = sys.modules.get("torch._dynamo.convert_frame")
    return convert_frame is not None and getattr(convert_frame, "FRAME_COUNTER", 1) > 0


def _replace(owner: object, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Set an attribute of a torch class or module; return what puts the old value back."""
    if getattr(owner, name) is not wrapper:
        _originals[name] = getattr(owner, name)
        setattr(owner, name, wrapper)

    def put_back() -> None:
        if getattr(owner, name) is wrapper:  # else somebody has wrapped ours and will unwrap it
            setattr(owner, name, _originals[name])

    return put_back


def _tell_batch_statistics(layer: nn.Module) -> None:
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
    listens = bool(_observers.present) and is_bn_layer(module) and _has_values(args, kwargs)
    if listens:
        _listeners.enter(module)
    return listens


@_unseen
def _after_call() -> None:
    _listeners.leave()


# The wrappers themselves hold as little as they can: dynamo skips them, but not what they call,
# and tries to compile that when a model is compiled in place. Hence the functions above.


def _observed_setattr(self: nn.Module, name: str, value: Any) -> None:
    __tracebackhide__ = True
    if name == "training" and value:
        _tell_training_set(self, sys._getframe(1))
    _originals["__setattr__"](self, name, value)


def _observed_call(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    if not _before_call(self, args, kwargs):
        return _originals["__call__"](self, *args, **kwargs)
    try:
        return _originals["__call__"](self, *args, **kwargs)
    finally:
        _after_call()


def _has_values(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a forward is a real one, and not a tracer's on fake tensors."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    with torch._C.DisableTorchFunction():  # a user's mode is not to hear of our questions
        return not any(t.is_meta or type(t).__name__ == "FakeTensor" for t in tensors)


def _observed_initialize(self: OptimizedModule) -> None:
    with _observers.away():  # torch.compile(model) holds on to model.__call__
        _originals["_initialize"](self)


@_unseen
def _tell_normalising(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
    _listeners.heard(args, kwargs, name)


def _observed_batch_norm(*args: Any, **kwargs: Any) -> Tensor:
    _tell_normalising(args, kwargs, "training")
    normalised: Tensor = _originals["batch_norm"](*args, **kwargs)
    return normalised


def _observed_instance_norm(*args: Any, **kwargs: Any) -> Tensor:
    _tell_normalising(args, kwargs, "use_input_stats")
    normalised: Tensor = _originals["instance_norm"](*args, **kwargs)
    return normalised


@_unseen
def _after_optimizer_step(optimizer: Optimizer, *_: object) -> None:
    for observer in _observers.present:
        observer.saw_optimizer_step(optimizer)


def _find_dynamo() -> Any:
    """Return dynamo's callback handler, and keep dynamo from tracing our wrappers.

    Both are private to torch. Where they are missing, guarded runs are judged as before, but may
    compile more graphs than bare ones. They are imported with this module, and not when the first
    step begins: that takes a second, and hypothesis may be timing the step.
    """
    try:
        from torch._dynamo.callback import callback_handler
        from torch._dynamo.eval_frame import skip_code
    except ImportError:
        return None
    wrappers = (_observed_call, _observed_setattr, _observed_batch_norm, _observed_instance_norm)
    for wrapper in wrappers:
        skip_code(wrapper.__code__)
    return callback_handler


_dynamo = _find_dynamo()
