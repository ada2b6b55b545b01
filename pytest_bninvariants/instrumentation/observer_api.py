"""What an observer can hear of torch, and which observers are active."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants import run_config
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo

ForwardKind = Literal["batches", "failed", "own_forwards"]
"""A forward that normalised with batch statistics, one that raised before it did, or one by code of
a user's own that may have done so."""
AfterCall = Callable[[], None]
"""What is called after the call that was announced."""
AfterForward = Callable[[bool], None]
"""What is called after a forward; its argument says whether the forward raised."""


class Observer:
    """Base class of observers; an event whose method is not overridden costs nothing."""

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Tell, as fast as possible, that this observer does not need to hear of a module's call.

        By default it ignores modules that are neither BN layers nor compiled.
        """
        return not (
            module._buffers
            or module._compiled_call_impl is not None
            or "_orig_mod" in module._modules
            or run_config.current.bn_layer_types
        )

    def saw_forward(self, module: nn.Module) -> None:
        """Hear of a module that is about to be called."""

    def observes_layer(self, layer: nn.Module) -> bool:
        """Tell whether it wants to hear what a BN layer, which is about to run, normalises with."""
        return True

    def before_layer(self, layer: nn.Module, x: Tensor | None) -> AfterForward | None:
        """Hear of a BN layer that is about to run.

        Args:
            layer: the layer.
            x: the first tensor that it is called with.

        Returns:
            What is to be called after the layer's forward.
        """
        return None

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        """Hear of a BN layer that normalised with batch statistics, or may have.

        Args:
            layer: the layer.
            kind: what is known of the forward.
            values: what it normalises, where it called one of torch's functions for that.
        """

    def saw_call(
        self, name: str, state: Tensor, values: Tensor | None, frame: FrameType, *, batch: bool
    ) -> AfterCall | None:
        """Hear of a call of `batch_norm` or `instance_norm` that no BN layer made.

        Args:
            name: the function's name.
            state: tells whose state is used: it is the running mean, or else the weight.
            values: what is normalised.
            frame: the frame that calls.
            batch: whether with batch statistics, rather than stored ones.

        Returns:
            What is to be called after the call, unless that raises.
        """
        return None

    def expects_updates(self, layer: nn.Module) -> bool:
        """Tell whether a BN layer is updated on purpose while it watches."""
        return False

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Hear that a frame is about to execute `module.training = training`."""

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Hear of an optimizer that is about to step.

        Args:
            optimizer: the optimizer.
            frame: the frame in which torch runs the step.
            closure: whether the step has a closure, and so has yet to compute its gradients.

        Returns:
            What is to be called after the step, unless that raises.
        """
        return None

    def before_load(self, module: nn.Module, frame: FrameType | None) -> AfterCall | None:
        """Hear of a module that is about to load a state; return what is to be called after it."""
        return None

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> AfterCall | None:
        """Hear of a collective that is about to write to tensors.

        Args:
            name: the function's name in `torch.distributed`.
            tensors: all that it is given.
            frame: the frame that calls it.

        Returns:
            What is to be called after it, unless it raises.
        """
        return None

    def saw_compiled_code(self) -> None:
        """Hear that dynamo compiles, or that code runs that it may have compiled."""


active_observers: tuple[Observer, ...] = ()
"""Those that hear what happens now."""


@skipped_by_dynamo
def is_observed(module: nn.Module) -> bool:
    """Tell whether any active observer may need to hear of a module's call."""
    for observer in active_observers:  # noqa: SIM110, a generator takes longer
        if not observer.ignores(module):
            return True
    return False


def calls_are_observed() -> bool:
    """Tell whether any active observer hears of calls of `batch_norm` that no BN layer makes."""
    return any(type(observer).saw_call is not Observer.saw_call for observer in active_observers)


def steps_are_observed() -> bool:
    """Tell whether any active observer hears of optimizer steps."""
    return any(
        type(observer).before_step is not Observer.before_step for observer in active_observers
    )
