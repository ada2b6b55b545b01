"""Tell observers of the operations that write state: backward passes, steps, loads, collectives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
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
from pytest_bninvariants.torch_internals.patches import CodeSwap, Patch, Switch, caller, wrap_method
from pytest_bninvariants.torch_internals.private_api import ENGINE, has_engine

_Function = Callable[..., Any]
_COLLECTIVES = (
    "_broadcast_coalesced",  # DDP broadcasts buffers with it before each forward
    *("broadcast", "all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter_tensor"),
    *("all_gather", "all_gather_into_tensor", "scatter", "recv"),
)
_BACKWARD_INPUTS = 3  # their position among the engine's arguments after the outputs
_running_steps: dict[FrameType, list[AfterCall]] = {}
"""Functions to call after each running step, by the frame in which torch calls its hooks."""


def hook_optimizers() -> list[Callable[[], None]]:
    """Register hooks around every optimizer's step; return functions that remove them."""
    return [
        register_optimizer_step_pre_hook(_before_step).remove,
        register_optimizer_step_post_hook(_after_step).remove,
    ]


def forget_steps() -> None:
    """Forget running steps; torch calls no hook after a step that raised."""
    _running_steps.clear()


@skipped_by_dynamo
def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _tell_before_step(optimizer, args, kwargs, sys._getframe(1))


@skipped_by_dynamo
def _after_step(*_: object) -> None:
    _tell_after_step(sys._getframe(1))


@hidden_from_dynamo
def _tell_before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
) -> None:
    closure = kwargs.get("closure", next((arg for arg in args if arg is not optimizer), None))
    after = [
        observer.before_step(optimizer, frame, closure=closure is not None)
        for observer in observer_api.observers_here()
    ]
    _running_steps[frame] = [each for each in after if each is not None]


@hidden_from_dynamo
def _tell_after_step(frame: FrameType) -> None:
    """Tell observers that the innermost running step has ended."""
    step_frame = next((each for each in callers(frame) if each in _running_steps), None)
    if step_frame is not None:
        _call_all(_running_steps.pop(step_frame))


def patches() -> list[Patch | CodeSwap]:
    """Return the wrappers around backward passes, loads and collectives."""
    available = torch.distributed.is_available()
    names = [name for name in _COLLECTIVES if available and hasattr(torch.distributed, name)]
    engines = [Patch(torch.autograd, ENGINE, _observing_backward)] if has_engine else []
    return [
        *engines,
        wrap_method(nn.Module, "load_state_dict", _observing_load),
        *(Patch(torch.distributed, name, _observing_collective(name)) for name in names),
    ]


def _observing_backward(original: _Function, switch: Switch) -> _Function:
    """Wrap the function with which `backward` and `torch.autograd.grad` run the engine."""

    @skipped_by_dynamo
    def _engine_run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        result = original(outputs, *args, **kwargs)
        if switch.on and not is_dynamo_compiling():
            _tell_backward(args, kwargs, result)
        return result

    return _engine_run_backward


@hidden_from_dynamo
def _tell_backward(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    returned: dict[int, Tensor] = {}
    if not kwargs.get("accumulate_grad") and len(args) > _BACKWARD_INPUTS:
        pairs = zip(args[_BACKWARD_INPUTS], result, strict=False)
        returned = {id(x): grad for x, grad in pairs if isinstance(grad, Tensor)}
    for observer in observer_api.observers_here():
        observer.saw_backward(returned)


def _observing_load(original: _Function, switch: Switch) -> _Function:
    def load_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not switch.on or is_dynamo_compiling():
            return original(self, *args, **kwargs)
        after = _before_load(self, args, kwargs, caller())
        try:
            return original(self, *args, **kwargs)
        finally:  # with strict=True it raises after it has loaded what fits
            _call_all(after)

    return load_state_dict


def _before_load(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType | None
) -> list[AfterCall | None]:
    given = args[0] if args else kwargs.get("state_dict")
    state = given if isinstance(given, Mapping) else {}
    return [
        observer.before_load(module, state, frame) for observer in observer_api.observers_here()
    ]


def _observing_collective(name: str) -> Callable[[_Function, Switch], _Function]:
    def observing(original: _Function, switch: Switch) -> _Function:
        def collective(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not switch.on or is_dynamo_compiling():
                return original(*args, **kwargs)
            after = _before_collective(name, args, kwargs, sys._getframe(1))
            result = original(*args, **kwargs)
            _call_all(after)
            return result

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
        for observer in observer_api.observers_here()
    ]


def _call_all(after: Iterable[AfterCall | None]) -> None:
    for each in after:
        if each is not None:
            each()
