"""Tell observers who reads a module's parameters, and which of them optimizers are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.compiler import is_dynamo_compiling
from torch.optim import Optimizer

from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.torch_internals.dynamo import hidden_from_dynamo, skipped_by_dynamo
from pytest_bninvariants.torch_internals.patches import MakeWrapper, Patch, Patches, Switch

_Function = Callable[..., Any]


class ParameterReadHooks:
    """Wrap what reads parameters, while somebody wants to know.

    The wrappers are off while compiled code runs, which would be recompiled if it found other
    functions than those that it was compiled with.
    """

    def __init__(self) -> None:
        self._wanted = False
        # `Module.parameters` and `Module.requires_grad_` call `named_parameters`.
        self._patches = Patches(
            Patch(nn.Module, "named_parameters", _observing_read("named_parameters")),
            Patch(nn.Module, "state_dict", _observing_read("state_dict")),
            Patch(Optimizer, "add_param_group", _observing_group),
        )

    def install(self) -> None:
        """Put the wrappers on."""
        self._wanted = True
        self._patches.install()

    def remove(self) -> None:
        """Take the wrappers off."""
        self._wanted = False
        self._patches.remove()

    def suspend(self) -> None:
        """Take the wrappers off for a while."""
        self._patches.remove()

    def resume(self) -> None:
        """Put the wrappers back, if they are wanted."""
        if self._wanted:
            self._patches.install()


def _observing_read(name: str) -> MakeWrapper:
    def observing(original: _Function, switch: Switch) -> _Function:
        @skipped_by_dynamo
        def read(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if switch.on and not is_dynamo_compiling():
                _tell_read(self)
            return original(self, *args, **kwargs)

        read.__name__ = name
        return read

    return observing


def _observing_group(original: _Function, switch: Switch) -> _Function:
    def add_param_group(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        result = original(self, *args, **kwargs)
        if switch.on and not is_dynamo_compiling():
            for observer in observer_api.observers_here():
                observer.saw_param_group(self)
        return result

    return add_param_group


@hidden_from_dynamo
def _tell_read(module: nn.Module) -> None:
    for observer in observer_api.observers_here():
        observer.saw_parameters_read(module)


read_hooks = ParameterReadHooks()
