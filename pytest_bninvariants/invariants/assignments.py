"""Hear of `tensor.data = other` and `module.name = tensor`, which no operator of torch does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_bninvariants.invariants.patches import Patch, Patches, Switch


class Listener(Protocol):
    """Whoever wants to hear."""

    def saw_data_set(self, tensor: Tensor, frame: FrameType) -> None:
        """Hear of a tensor that was given another's memory, in this frame."""

    def saw_replaced(self, old: Tensor, new: object, call: str, frame: FrameType) -> None:
        """Hear of a module that holds another tensor now, after this call in this frame."""


class _Data:
    """Stand in for `torch.Tensor.data`, which a base class defines."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __get__(self, tensor: Tensor | None, owner: type) -> Any:
        return self._original if tensor is None else self._original.__get__(tensor, owner)

    def __set__(self, tensor: Tensor, value: Tensor) -> None:
        self._original.__set__(tensor, value)
        for listener in tuple(_listeners):
            listener.saw_data_set(tensor, sys._getframe(1))


def _held(module: nn.Module, name: str) -> Tensor | None:
    for registry in ("_parameters", "_buffers"):  # which a half-made module does not have yet
        held: Tensor | None = vars(module).get(registry, {}).get(name)
        if held is not None:
            return held
    return None


def _hearing_setattr(original: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: N807
        __tracebackhide__ = True
        old = _held(self, name) if switch.on else None
        original(self, name, value)
        if old is not None and old is not value:
            call = f"{type(self).__name__}.{name} = ..."
            for listener in tuple(_listeners):
                listener.saw_replaced(old, value, call, sys._getframe(1))

    return __setattr__


_listeners: list[Listener] = []
_patches = Patches(Patch(nn.Module, "__setattr__", _hearing_setattr))


def add(listener: Listener) -> None:
    """Tell somebody of assignments from now on."""
    if not _listeners:
        torch.Tensor.data = _Data(torch.Tensor.data)  # type: ignore[assignment]
        _patches.install()
    _listeners.append(listener)


def discard(listener: Listener) -> None:
    """Tell them no longer; harmless where they are not told."""
    if listener not in _listeners:
        return
    _listeners.remove(listener)
    if not _listeners:
        del torch.Tensor.data
        _patches.remove()
