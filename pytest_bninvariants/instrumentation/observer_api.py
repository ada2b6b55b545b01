"""Whoever watches at the moment, and what they can hear."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants import run_config
from pytest_bninvariants.torch_internals.dynamo import skipped_by_dynamo

How = Literal["batches", "failed", "own_forwards"]
Finish = Callable[[], None]
End = Callable[[bool], None]


class Observer:
    """Whoever wants to hear; what it does not override, it pays no heed to."""

    @skipped_by_dynamo
    def ignores(self, module: nn.Module) -> bool:
        """Tell, in as little time as can be, that it has no need to hear of a module's call.

        Unless it says so, that is where a module is neither a BN layer nor compiled.
        """
        return not (
            module._buffers
            or module._compiled_call_impl is not None
            or "_orig_mod" in module._modules
            or run_config.current.bn_layer_types
        )

    def saw_forward(self, module: nn.Module) -> None:
        """Hear of a module that is about to be called."""

    def heeds(self, layer: nn.Module) -> bool:
        """Tell whether it wants to hear what a BN layer normalises with, that is about to run."""
        return True

    def before_layer(self, layer: nn.Module, x: Tensor | None) -> End | None:
        """Hear of a BN layer's forward; what is returned is called after it, and told if it failed.

        x is the first tensor that the layer is called with.
        """
        return None

    def saw_batch_statistics(self, layer: nn.Module, how: How, values: Tensor | None) -> None:
        """Hear of a BN layer that normalised with batch statistics, or may have.

        `values` are those that it normalises, where it called one of torch's functions for that.
        """

    def saw_call(
        self, name: str, state: Tensor, values: Tensor | None, frame: FrameType, *, batch: bool
    ) -> Finish | None:
        """Hear of a call of `batch_norm` or `instance_norm` by no BN layer, in this frame.

        It normalises `values`, with stored or, if `batch`, with batch statistics. `state` tells for
        which layer: it is the running mean, or the weight where there is none. What is returned is
        called after it, unless it raises.
        """
        return None

    def expects_updates(self, layer: nn.Module) -> bool:
        """Tell whether a BN layer is updated on purpose while it watches."""
        return False

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Hear of `module.training = training`, before it is so, in this frame."""

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> Finish | None:
        """Hear of an optimizer that is about to step; what is returned is called after it.

        With a closure, the gradients that it steps with are yet to come.
        """
        return None

    def before_load(self, module: nn.Module, frame: FrameType | None) -> Finish | None:
        """Hear of load_state_dict(), likewise."""
        return None

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: FrameType | None
    ) -> Finish | None:
        """Hear of an operation between processes that writes to tensors, likewise."""
        return None

    def saw_compiled_code(self) -> None:
        """Hear that dynamo compiles, or that code runs that it may have compiled."""


present: tuple[Observer, ...] = ()
"""All who watch at the moment."""


@skipped_by_dynamo
def is_heard(module: nn.Module) -> bool:
    """Tell whether anybody may want to hear of a module's call."""
    for observer in present:  # noqa: SIM110, a generator takes longer
        if not observer.ignores(module):
            return True
    return False


def hears_calls() -> bool:
    """Tell whether anybody wants to hear of calls of `batch_norm` by no BN layer."""
    return any(type(observer).saw_call is not Observer.saw_call for observer in present)


def hears_steps() -> bool:
    """Tell whether anybody wants to hear of optimizer steps."""
    return any(type(observer).before_step is not Observer.before_step for observer in present)
