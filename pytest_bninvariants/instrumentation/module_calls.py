"""Tell observers of modules that are called, and of modes that are set.

Dynamo skips the wrappers themselves, but if a model is compiled in place, it tries to compile what
they call. So the wrappers do as little as possible, and call only functions that are
`hidden_from_dynamo`. `torch.export` compiles without running the compile callbacks, so there the
wrappers are on and do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.instrumentation.norm_calls import norm_hooks
from pytest_bninvariants.instrumentation.unseen_code.device_graphs import tell_captured
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.snapshot.tensor_bytes import have_values
from pytest_bninvariants.torch_internals import dynamo
from pytest_bninvariants.torch_internals.dynamo import hidden_from_dynamo, skipped_by_dynamo
from pytest_bninvariants.torch_internals.patches import Switch, caller
from pytest_bninvariants.torch_internals.private_api import DisableTorchFunction

_Function = Callable[..., Any]


def observing_setattr(original: _Function, switch: Switch) -> _Function:
    """Wrap `Module.__setattr__`, which sets a module's mode."""

    @skipped_by_dynamo
    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: N807
        __tracebackhide__ = True
        if name == "training" and switch.on and not is_dynamo_compiling():
            _tell_mode_set(self, value, caller())
        original(self, name, value)

    return __setattr__


def observing_call(original: _Function, switch: Switch) -> _Function:
    """Wrap `Module._call_impl`, through which every module is called."""

    @skipped_by_dynamo
    def _call_impl(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        quiet = not switch.on or is_dynamo_compiling()
        if not quiet and observer_api.captures_here():
            quiet = True
            tell_captured(self)
        if quiet or not (observer_api.is_observed(self) or norm_hooks.listening_calls):
            return original(self, *args, **kwargs)
        if not _before_call(self, args, kwargs):
            return original(self, *args, **kwargs)
        failed, result = True, None
        try:
            result = original(self, *args, **kwargs)
            failed = False
        finally:
            _after_call(result, failed=failed)
        return result

    return _call_impl


@hidden_from_dynamo
def _tell_mode_set(module: nn.Module, training: Any, frame: FrameType | None) -> None:
    assert frame is not None
    for observer in observer_api.observers_here():
        observer.saw_mode_set(module, bool(training), frame)


@hidden_from_dynamo
def _before_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell observers of a call; return whether `_after_call` must follow."""
    if norm_hooks.off_for_compiled_code and not dynamo.dynamo_runs():
        norm_hooks.return_from_compiled_code()
    for observer in observer_api.observers_here():
        observer.saw_forward(module)
    is_layer = is_bn_layer(module)
    observed = is_layer and any(
        observer.observes_layer(module) for observer in observer_api.observers_here()
    )
    if not (observed or norm_hooks.listening_calls or observer_api.calls_are_observed()):
        return False
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return _is_real(tensors) and norm_hooks.enter(module, tensors, is_layer=is_layer)


@hidden_from_dynamo
def _after_call(result: object, *, failed: bool) -> None:
    norm_hooks.leave(result, failed=failed)


def _is_real(tensors: list[Tensor]) -> bool:
    """Tell whether a forward computes values, rather than being traced with fake tensors."""
    with DisableTorchFunction():  # a user's mode must not see our calls
        return have_values(tensors)
