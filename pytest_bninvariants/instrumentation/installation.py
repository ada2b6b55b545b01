"""Tell observers what torch does in this process.

While there are observers, a few functions of torch are wrapped, first of all `Module._call_impl`,
and the global step hooks of `torch.optim` are used. Nothing is attached to a user's objects, so
copies, pickles and scripts of a model that are made inside a step are clean. Everything is off
while dynamo compiles, so that guarded and bare runs compile the same graphs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pytest_bninvariants.instrumentation import (
    grad_switches,
    observer_api,
    write_hooks,
)
from pytest_bninvariants.instrumentation.checkpoint_loads import checkpoint_hooks
from pytest_bninvariants.instrumentation.module_calls import observing_call, observing_setattr
from pytest_bninvariants.instrumentation.norm_calls import norm_hooks
from pytest_bninvariants.instrumentation.observer_api import Observer
from pytest_bninvariants.instrumentation.parameter_reads import read_hooks
from pytest_bninvariants.instrumentation.unseen_code.compiled_code import (
    observing_eval_frame,
    tell_compiled_code,
)
from pytest_bninvariants.instrumentation.unseen_code.device_graphs import graph_hooks
from pytest_bninvariants.torch_internals import dynamo, private_api
from pytest_bninvariants.torch_internals.patches import Patch, Patches, Switch, wrap_method

_Function = Callable[..., Any]


class _Installation:
    """Keep the observers, and the wrappers in place while there are any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._step_hooks: list[Callable[[], None]] = []
        """Functions that remove the hooks around optimizer steps."""
        self._observers: tuple[Observer, ...] = ()
        self._alone: list[Observer] = []
        """Those of the observers that are only told what happens in one thread."""
        self._patches = Patches(
            wrap_method(nn.Module, "__setattr__", observing_setattr),
            Patch(nn.Module, "_call_impl", observing_call),
            Patch(nn.Module, "compile", _suspending),
            *write_hooks.patches(),
            *dynamo.patches(observing_eval_frame, _suspending),
        )

    def add(self, observer: Observer) -> None:
        """Tell an observer what happens from now on.

        Raises:
            GateError: if this torch lacks a private name that guards need.
        """
        with self._lock:
            if not self._observers:
                private_api.require(private_api.A_GUARD)
                dynamo.add_compile_callbacks(self._make_way, self._install)
            self._set((*self._observers, observer))
            self._install()

    def discard(self, observer: Observer) -> None:
        """Stop telling an observer; do nothing if it is not being told."""
        with self._lock:
            if observer not in self._observers:
                return
            self._set(tuple(other for other in self._observers if other is not observer))
            if not self._observers:
                self._uninstall()
                dynamo.remove_compile_callbacks(self._make_way, self._install)
                write_hooks.forget_steps()
                observer_api.end_capture()  # its own end may not have been seen
                norm_hooks.return_from_compiled_code()  # any ran inside what has ended

    def _set(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers
        told = (each for each in observers if each not in self._alone)
        observer_api.active_observers = tuple(told)

    @contextmanager
    def observed_only_by(self, *observers: Observer) -> Iterator[None]:
        """Tell these observers what happens in this thread, and no others, for a while."""
        with self._lock:
            self._alone += observers
            for observer in observers:
                self.add(observer)
        try:
            with observer_api.alone_in_this_thread(observers):
                yield
        finally:
            with self._lock:
                for observer in observers:
                    self.discard(observer)
                    self._alone.remove(observer)
                self._install()  # dynamo may have taken the wrappers off in between

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Take the wrappers off for a moment."""
        self._uninstall()
        try:
            yield
        finally:
            self._install()

    def _install(self, *_: object) -> None:
        with self._lock:
            if self._observers:
                self._patches.install()
                graph_hooks.install()
                checkpoint_hooks.install()
                norm_hooks.resume()
                if observer_api.any_observes_steps(self._observers) and not self._step_hooks:
                    self._step_hooks = write_hooks.hook_optimizers()
                if observer_api.any_observes_grad_switches(self._observers):
                    grad_switches.switches.install()
                if observer_api.any_observes_parameter_reads(self._observers):
                    read_hooks.install()

    def _uninstall(self) -> None:
        with self._lock:
            norm_hooks.suspend()
            self._patches.remove()
            graph_hooks.remove()
            checkpoint_hooks.remove()
            grad_switches.switches.remove()
            read_hooks.remove()
            while self._step_hooks:
                self._step_hooks.pop()()

    def _make_way(self, *_: object) -> None:
        """Take the wrappers off before dynamo compiles."""
        tell_compiled_code()
        self._uninstall()


def _suspending(original: _Function, switch: Switch) -> _Function:
    """Wrap a method that prepares a module for compiled code.

    The compiled module keeps the method that it will call, which must not be one of our wrappers.
    """

    def compile(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _installation.suspended():
            return original(self, *args, **kwargs)

    return compile


_installation = _Installation()
add = _installation.add
discard = _installation.discard
observed_only_by = _installation.observed_only_by


class Watcher(Observer):
    """An observer that can be started and stopped."""

    def start(self) -> None:
        """Begin to observe."""
        add(self)

    def stop(self) -> None:
        """Stop observing; do nothing if it has not started."""
        discard(self)
