"""Hear of the operations of torch that write state: optimizer steps, loads, collectives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch.distributed
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from pytest_bninvariants.frames import callers
from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.instrumentation.observer_api import AfterCall
from pytest_bninvariants.torch_internals.dynamo import hidden_from_dynamo, skipped_by_dynamo
from pytest_bninvariants.torch_internals.patches import Patch, Swap, Switch, around_method, caller

_Function = Callable[..., Any]
_COLLECTIVES = (
    "_broadcast_coalesced",  # DDP's
    *("broadcast", "all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter_tensor"),
    *("all_gather", "all_gather_into_tensor", "scatter", "recv"),
)
_stepping: dict[FrameType, list[AfterCall]] = {}
"""What is to be called after a step, by the frame in which torch calls the hooks around it."""


def hook_optimizers() -> list[Callable[[], None]]:
    """Put hooks around every optimizer's step, and return what takes them off."""
    return [
        register_optimizer_step_pre_hook(_before_step).remove,
        register_optimizer_step_post_hook(_after_step).remove,
    ]


def forget_steps() -> None:
    """Forget steps that are not over; one that raised never is, and torch says nothing of it."""
    _stepping.clear()


@skipped_by_dynamo
def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _tell_step(optimizer, args, kwargs, sys._getframe(1))


@skipped_by_dynamo
def _after_step(*_: object) -> None:
    _tell_stepped(sys._getframe(1))


@hidden_from_dynamo
def _tell_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
) -> None:
    closure = kwargs.get("closure", next((arg for arg in args if arg is not optimizer), None))
    heard = [
        observer.before_step(optimizer, frame, closure=closure is not None)
        for observer in observer_api.active_observers
    ]
    _stepping[frame] = [finish for finish in heard if finish is not None]


@hidden_from_dynamo
def _tell_stepped(frame: FrameType) -> None:
    """Tell that the innermost step that runs is over."""
    begun = next((each for each in callers(frame) if each in _stepping), None)
    for finish in _stepping.pop(begun) if begun is not None else ():
        finish()


def patches() -> list[Patch | Swap]:
    """Return the wrappers around loads and collectives."""
    there = torch.distributed.is_available()
    names = [name for name in _COLLECTIVES if there and hasattr(torch.distributed, name)]
    return [
        around_method(nn.Module, "load_state_dict", _observing_load),
        *(Patch(torch.distributed, name, _observing(name)) for name in names),
    ]


def _observing_load(original: _Function, switch: Switch) -> _Function:
    def load_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not switch.on or is_dynamo_compiling():
            return original(self, *args, **kwargs)
        frame = caller()
        heard = [observer.before_load(self, frame) for observer in observer_api.active_observers]
        try:
            return original(self, *args, **kwargs)
        finally:  # what is strict complains when it has loaded
            _finished(None, heard)

    return load_state_dict


def _observing(name: str) -> Callable[[_Function, Switch], _Function]:
    def observing(original: _Function, switch: Switch) -> _Function:
        def collective(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not switch.on or is_dynamo_compiling():
                return original(*args, **kwargs)
            heard = _before_collective(name, args, kwargs, sys._getframe(1))
            return _finished(original(*args, **kwargs), heard)

        return collective

    return observing


def _before_collective(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType | None
) -> list[AfterCall | None]:
    tensors = [
        each
        for value in (*args, *kwargs.values())
        for each in (value if isinstance(value, list) else [value])
        if isinstance(each, Tensor)
    ]
    return [
        observer.before_collective(name, tensors, frame)
        for observer in observer_api.active_observers
    ]


def _finished(result: Any, heard: list[AfterCall | None]) -> Any:
    for finish in heard:
        if finish is not None:
            finish()
    return result
