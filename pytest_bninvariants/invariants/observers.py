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
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from pytest_bninvariants.invariants.normalisation import has_known_forward, uses_batch_statistics
from pytest_bninvariants.invariants.patches import Patch, Patches, Switch
from pytest_bninvariants.invariants.selection import is_bn_layer, own_tensors

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Function = Callable[..., Any]
_RUNNING_MEAN, _USES_BATCH = 3, 5  # positions in torch.batch_norm and in torch.instance_norm
_TRACERS = ("FakeTensor", "FunctionalTensor")
How = Literal["batches", "failed", "own_forwards"]


class Observer(Protocol):
    """Whoever wants to hear."""

    def saw_forward(self, module: nn.Module) -> None:
        """Hear of a module that is about to be called."""

    def saw_batch_statistics(self, layer: nn.Module, how: How) -> None:
        """Hear of a BN layer that normalised with batch statistics, or may have."""

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
    """A module whose forward runs.

    Args:
        module: the module.
        is_layer: whether it is a BN layer.
        heard: whether one of torch's normalising functions was called for it.
    """

    module: nn.Module
    is_layer: bool
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

    def enter(self, module: nn.Module, *, is_layer: bool) -> bool:
        """Begin to listen to a BN layer, or to a module inside of one; tell whether to `leave`."""
        stack = self._stack()
        if is_layer or stack:
            stack.append(_Running(module, is_layer))
            self._count_by(1)
            return True
        return False

    def leave(self, *, failed: bool) -> None:
        """End what `enter` began."""
        self._count_by(-1)
        ended = self._stack().pop()
        layer = ended.module
        if not ended.is_layer or ended.heard:
            return
        if has_known_forward(layer):
            if uses_batch_statistics(layer):
                _tell_batch_statistics(layer, "failed" if failed else "batches")
        elif layer.training:
            _tell_batch_statistics(layer, "own_forwards")

    def heard(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], flag: str) -> None:
        """Take note of a normalising call and its arguments."""
        mean = args[_RUNNING_MEAN] if len(args) > _RUNNING_MEAN else kwargs.get("running_mean")
        batch = args[_USES_BATCH] if len(args) > _USES_BATCH else kwargs.get(flag)
        values = args[0] if args else kwargs.get("input")
        running = self._meant(name, mean, values)
        if running is not None:
            running.heard = True
            if batch:
                _tell_batch_statistics(running.module, "batches")

    def _meant(self, name: str, mean: object, values: object) -> _Running | None:
        """Return the layer that a call normalises for; layers make other such calls too."""
        stack = self._stack()
        if mean is not None:
            layers = [running for running in stack if running.is_layer]
            owner = (r for r in layers if any(b is mean for b in r.module._buffers.values()))
            return next(owner, layers[-1] if layers else None)
        if not stack or not stack[-1].is_layer:
            return None
        layer = stack[-1].module
        if name == "instance_norm" and not isinstance(layer, _InstanceNorm):
            return None
        return None if _shares_memory(values, layer) else stack[-1]

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


def _shares_memory(values: object, layer: nn.Module) -> bool:
    """Tell whether values are a layer's own parameter, which weight standardisation normalises."""
    if not isinstance(values, Tensor):
        return False
    with torch._C.DisableTorchFunction():
        start = values.untyped_storage().data_ptr()
        return any(t.untyped_storage().data_ptr() == start for _, _, t in own_tensors(layer))


def _tell_batch_statistics(layer: nn.Module, how: How) -> None:
    for observer in _observers.present:
        observer.saw_batch_statistics(layer, how)


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
    return _has_values(args, kwargs) and _listeners.enter(module, is_layer=is_bn_layer(module))


@_unseen
def _after_call(*, failed: bool) -> None:
    _listeners.leave(failed=failed)


@_unseen
def _tell_normalising(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], flag: str) -> None:
    _listeners.heard(name, args, kwargs, flag)


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
        return not any(t.is_meta or type(t).__name__ in _TRACERS for t in tensors)


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
        failed = True
        try:
            result = original(self, *args, **kwargs)
            failed = False
        finally:
            _after_call(failed=failed)
        return result

    return __call__


def _observing_batch_norm(original: _Function, switch: Switch) -> _Function:
    def batch_norm(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if switch.on and not is_dynamo_compiling():
            _tell_normalising("batch_norm", args, kwargs, "training")
        return original(*args, **kwargs)

    return batch_norm


def _observing_instance_norm(original: _Function, switch: Switch) -> _Function:
    def instance_norm(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if switch.on and not is_dynamo_compiling():
            _tell_normalising("instance_norm", args, kwargs, "use_input_stats")
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
