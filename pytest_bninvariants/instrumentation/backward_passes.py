"""Tell observers of backward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.torch_internals.dynamo import hidden_from_dynamo, skipped_by_dynamo
from pytest_bninvariants.torch_internals.patches import Patch, Switch
from pytest_bninvariants.torch_internals.private_api import ENGINE, has_engine

_Function = Callable[..., Any]
_INPUTS = 3  # position among the arguments after the outputs


def patches() -> list[Patch]:
    """Return the wrapper around the engine, if this torch has the function."""
    return [Patch(torch.autograd, ENGINE, _observing_backward)] if has_engine else []


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
    if not kwargs.get("accumulate_grad") and len(args) > _INPUTS:
        pairs = zip(args[_INPUTS], result, strict=False)
        returned = {id(x): grad for x, grad in pairs if isinstance(grad, Tensor)}
    for observer in observer_api.observers_here():
        observer.saw_backward(returned)
