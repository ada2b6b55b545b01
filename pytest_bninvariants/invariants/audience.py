"""Whoever watches at the moment, and what they can hear."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_P = ParamSpec("_P")
_R = TypeVar("_R")
How = Literal["batches", "failed", "own_forwards"]
Finish = Callable[[], None]
End = Callable[[bool], None]


class Observer:
    """Whoever wants to hear; what it does not override, it pays no heed to."""

    def saw_forward(self, module: nn.Module) -> None:
        """Hear of a module that is about to be called."""

    def before_layer(self, layer: nn.Module, x: Tensor | None) -> End | None:
        """Hear of a BN layer's forward; what is returned is called after it, and told if it failed.

        x is the first tensor that the layer is called with.
        """
        return None

    def saw_batch_statistics(self, layer: nn.Module, how: How, values: Tensor | None) -> None:
        """Hear of a BN layer that normalised with batch statistics, or may have.

        `values` are those that it normalises, where it called one of torch's functions for that.
        """

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        """Hear of `module.training = training`, before it is so, in this frame."""

    def before_step(self, optimizer: Optimizer, frame: FrameType | None) -> Finish | None:
        """Hear of an optimizer that is about to step; what is returned is called after it."""
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


def unseen(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep dynamo, which may be running what calls a function, from compiling it."""
    hidden: Callable[_P, _R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return hidden
