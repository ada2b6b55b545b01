"""The events of torch that an observer can observe, and which observers are active."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from types import FrameType
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants import run_config
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo
from pytest_bninvariants.torch_internals.private_api import current_graph_task_id

ForwardKind = Literal["batches", "failed", "own_forwards"]
"""A forward that normalised with batch statistics, one that raised before it did, or a user's own
forward, which may have done so."""
AfterCall = Callable[[], None]
"""A function to call after the call that an observer was told of."""
AfterForward = Callable[[bool], None]
"""A function to call after a forward; its argument tells whether the forward raised."""


def combined(finishes: Iterable[AfterCall]) -> AfterCall | None:
    """Return a function to call after a call, which calls each of these; None if there are none."""
    functions = list(finishes)

    def finish() -> None:
        for function in functions:
            function()

    return finish if functions else None


class Observer:
    """Base class of observers; an event whose method they do not override costs nothing."""

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Tell, as fast as possible, whether this observer ignores calls of a module.

        By default it ignores modules that are neither BN layers nor compiled.
        """
        return not (
            module._buffers
            or module._compiled_call_impl is not None
            or "_orig_mod" in module._modules
            or run_config.current.bn_layer_types
        )

    def saw_forward(self, module: nn.Module) -> None:
        """Observe a module that is about to be called."""

    def observes_layer(self, layer: nn.Module) -> bool:
        """Tell whether it observes what a BN layer that is about to run normalises with."""
        return True

    def before_layer(self, layer: nn.Module, x: Tensor | None) -> AfterForward | None:
        """Observe a BN layer that is about to run.

        Args:
            layer: the layer.
            x: the first tensor that it is called with.

        Returns:
            A function to call after the layer's forward, if any.
        """
        return None

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Observe a BN layer that normalised with batch statistics, or may have.

        Args:
            layer: the layer.
            kind: what is known of the forward.
            values: what it normalises, if it called one of torch's functions for that.
        """

    def saw_own_forward(self, layer: nn.Module, x: Tensor | None, output: object) -> None:
        """Observe a BN layer that ran, with none of torch's functions and no write that was seen.

        Args:
            layer: the layer, whose forward is not torch's own.
            x: the first tensor that it was called with.
            output: what it returned.
        """

    def saw_call(
        self,
        name: str,
        state: tuple[Tensor, ...],
        values: Tensor | None,
        frame: FrameType,
        *,
        batch: bool,
    ) -> AfterCall | None:
        """Observe a call of `batch_norm` or `instance_norm` that no BN layer made.

        Args:
            name: the function's name.
            state: the running mean and variance, or else the weight: whose state the call uses.
            values: what is normalised.
            frame: the frame that makes the call.
            batch: whether the call uses batch statistics, rather than stored ones.

        Returns:
            A function to call after the call, unless that raises, if any.
        """
        return None

    def expects_updates(self, layer: nn.Module) -> bool:
        """Tell whether this observer expects that a BN layer is updated."""
        return False

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Observe that a frame is about to execute `module.training = training`."""

    def saw_requires_grad_set(self, tensor: Tensor, requires: bool, frame: FrameType) -> None:
        """Observe that a frame is about to set a parameter's `requires_grad`."""

    def saw_parameters_read(self, module: nn.Module) -> None:
        """Observe that someone is about to read a module's parameters, or its state_dict."""

    def saw_param_group(self, optimizer: Optimizer) -> None:
        """Observe that an optimizer was given another group of parameters, its last."""

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Observe an optimizer that is about to step.

        Args:
            optimizer: the optimizer.
            frame: the frame in which torch runs the step.
            closure: whether the step has a closure, and so has yet to compute its gradients.

        Returns:
            A function to call after the step, unless that raises, if any.
        """
        return None

    def saw_backward(self, returned: Mapping[int, Tensor]) -> None:
        """Observe a backward pass that has ended.

        Args:
            returned: the gradients that it returned instead of accumulating them, by the id of the
                tensor that each is for.
        """

    def before_load(
        self, module: nn.Module, state: Mapping[str, Any], frame: FrameType | None
    ) -> AfterCall | None:
        """Observe a module that is about to load a state_dict.

        Args:
            module: the module.
            state: the state_dict that it loads.
            frame: the frame that calls `load_state_dict`.

        Returns:
            A function to call after the load, if any.
        """
        return None

    def before_tensor_load(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Observe a checkpoint that is about to be read into tensors.

        Args:
            name: the function that reads it.
            tensors: the tensors.
            frame: the frame that calls it.

        Returns:
            A function to call after it, unless it raises, if any.
        """
        return None

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Observe a collective that is about to write to tensors.

        Args:
            name: the function's name in `torch.distributed`.
            tensors: all tensors among its arguments.
            frame: the frame that calls it.

        Returns:
            A function to call after it, unless it raises, if any.
        """
        return None

    def saw_compiled_code(self) -> None:
        """Observe that dynamo compiles, or that code runs that it may have compiled."""

    def saw_graph_replay(self, frame: FrameType) -> None:
        """Observe that a frame is about to replay a device graph: what it runs is not seen."""
        self.saw_compiled_code()

    def saw_captured_module(self, module: nn.Module) -> None:
        """Observe a module that is called while a device graph is captured: it does not run yet."""


active_observers: tuple[Observer, ...] = ()
"""The observers that are told what happens, in whatever thread."""
_alone_in: dict[int, tuple[Observer, ...]] = {}
"""By id of a thread, the only observers that are told what happens in it."""
_capturing: set[int] = set()
"""Ids of the threads that capture a device graph."""


@skipped_by_dynamo
def observers_here() -> tuple[Observer, ...]:
    """Return the observers that are told what happens now in this thread.

    None are during a capture, in which nothing happens but that a graph is recorded.
    """
    return () if _capturing and captures_here() else observers_of_this_thread()


@skipped_by_dynamo
def observers_of_this_thread() -> tuple[Observer, ...]:
    """Return the observers of this thread, also during a capture."""
    return _alone_in.get(get_ident(), active_observers) if _alone_in else active_observers


def begin_capture() -> None:
    """Note that this thread captures a device graph."""
    _capturing.add(get_ident())


def end_capture() -> None:
    """Note that this thread no longer captures a device graph."""
    _capturing.discard(get_ident())


@skipped_by_dynamo
def captures_here() -> bool:
    """Tell whether what is called here is captured; a backward runs in autograd's own threads."""
    if not _capturing:
        return False
    return get_ident() in _capturing or current_graph_task_id() != -1


@contextmanager
def alone_in_this_thread(observers: tuple[Observer, ...]) -> Iterator[None]:
    """Tell these observers, and no others, what happens in this thread, for a while."""
    thread = get_ident()
    outer = _alone_in.get(thread)
    _alone_in[thread] = observers
    try:
        yield
    finally:
        if outer is None:
            del _alone_in[thread]
        else:
            _alone_in[thread] = outer


@skipped_by_dynamo
def is_observed(module: nn.Module) -> bool:
    """Tell whether any active observer may need to know of a module's call."""
    for observer in observers_here():  # noqa: SIM110, a generator takes longer
        if not observer.ignores(module):
            return True
    return False


def calls_are_observed() -> bool:
    """Tell whether any active observer observes calls of `batch_norm` that no BN layer makes."""
    return any(type(observer).saw_call is not Observer.saw_call for observer in observers_here())


def any_observes_grad_switches(observers: Iterable[Observer]) -> bool:
    """Tell whether any of these observers observes that `requires_grad` is set."""
    return any(
        type(observer).saw_requires_grad_set is not Observer.saw_requires_grad_set
        for observer in observers
    )


def any_observes_steps(observers: Iterable[Observer]) -> bool:
    """Tell whether any of these observers observes optimizer steps."""
    return any(type(observer).before_step is not Observer.before_step for observer in observers)


def any_observes_parameter_reads(observers: Iterable[Observer]) -> bool:
    """Tell whether any of these observers observes who reads parameters."""
    return any(
        type(observer).saw_parameters_read is not Observer.saw_parameters_read
        for observer in observers
    )
