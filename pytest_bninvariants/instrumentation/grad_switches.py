"""Tell observers of parameters whose `requires_grad` is set."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.torch_internals.dynamo import hidden_from_dynamo, skipped_by_dynamo
from pytest_bninvariants.torch_internals.patches import Patches, Shadow

# Descriptors of a base class in C, which cannot be wrapped: a parameter's own class shadows them.
_attribute: Any = torch.Tensor.requires_grad
_method: Any = torch.Tensor.requires_grad_


@skipped_by_dynamo
def _set(parameter: Tensor, requires: Any) -> None:
    if not is_dynamo_compiling():
        _tell(parameter, requires, sys._getframe(1))
    _attribute.__set__(parameter, requires)


@skipped_by_dynamo
def _requires_grad_(self: Tensor, requires_grad: Any = True) -> Any:
    __tracebackhide__ = True
    if not is_dynamo_compiling():
        _tell(self, requires_grad, sys._getframe(1))
    return _method(self, requires_grad)


@hidden_from_dynamo
def _tell(parameter: Tensor, requires: Any, frame: FrameType) -> None:
    for observer in observer_api.observers_here():
        observer.saw_requires_grad_set(parameter, bool(requires), frame)


switches = Patches(
    Shadow(nn.Parameter, "requires_grad", property(_attribute.__get__, _set)),
    Shadow(nn.Parameter, "requires_grad_", _requires_grad_),
)
