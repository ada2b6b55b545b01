"""Whoever watches at the moment, and what they can hear."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants import asked

_P = ParamSpec("_P")
_R = TypeVar("_R")
How = Literal["batches", "failed", "own_forwards"]
Finish = Callable[[], None]
End = Callable[[bool], None]


def _find_dynamo() -> tuple[Any, Any]:
    """Return what has dynamo skip a function's frames, and what tells whether it runs.

    Both are private to torch, and where one is missing there is a slower way.
    """
    try:
        from torch._C._dynamo.eval_frame import get_eval_frame_callback
        from torch._dynamo.eval_frame import skip_code
    except ImportError:
        return None, None
    return skip_code, get_eval_frame_callback


_skip_code, _callback = _find_dynamo()


def passed_over(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have dynamo, which may be running what calls a function, leave it as it is.

    It may still compile what the function calls.
    """
    if _skip_code is not None:
        _skip_code(function.__code__)
    return function


@passed_over
def dynamo_runs() -> bool:
    """Tell whether dynamo looks at the frames that run, as far as this torch tells."""
    return _callback is not None and _callback() is not None


def unseen(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep dynamo, which may be running what calls a function, from compiling it.

    Where it runs nothing, the function is called as it is: switching dynamo off and on takes
    longer than most of these functions do.
    """
    hidden: Callable[_P, _R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    if _skip_code is None or _callback is None:
        return hidden

    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return (function if _callback() is None else hidden)(*args, **kwargs)

    return passed_over(call)


class Observer:
    """Whoever wants to hear; what it does not override, it pays no heed to."""

    @passed_over
    def ignores(self, module: nn.Module) -> bool:
        """Tell, in as little time as can be, that it has no need to hear of a module's call.

        Unless it says so, that is where a module is neither a BN layer nor compiled.
        """
        return not (
            module._buffers
            or module._compiled_call_impl is not None
            or "_orig_mod" in module._modules
            or asked.bn_layer_types
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


@passed_over
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
