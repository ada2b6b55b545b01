"""Hear of `tensor.data = other`, `module.name = other` and the like, which no operator does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.walk import named_modules, own_tensors
from pytest_bninvariants.torch_internals.patches import Patch, Patches, Switch

DATA_SET = "Tensor.data = ..."
SWAP = "torch.utils.swap_tensors()"


class Listener(Protocol):
    """Whoever wants to hear."""

    def saw_moved(self, tensors: Sequence[Tensor], call: str, frame: FrameType) -> None:
        """Hear of tensors that were given other memory by this call, in this frame."""

    def saw_replaced(
        self, replaced: Sequence[tuple[Tensor, Tensor]], call: str, frame: FrameType
    ) -> None:
        """Hear of tensors that others took the place of, by this call in this frame."""


class _Data:
    """Stand in for `torch.Tensor.data`, which a base class defines."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __get__(self, tensor: Tensor | None, owner: type) -> Any:
        return self._original if tensor is None else self._original.__get__(tensor, owner)

    def __set__(self, tensor: Tensor, value: Tensor) -> None:
        self._original.__set__(tensor, value)
        for listener in tuple(_listeners):
            listener.saw_moved([tensor], DATA_SET, sys._getframe(1))


def _held(module: nn.Module, name: str) -> Tensor | nn.Module | None:
    for registry in ("_parameters", "_buffers", "_modules"):  # a half-made module lacks them
        held: Tensor | nn.Module | None = vars(module).get(registry, {}).get(name)
        if held is not None:
            return held
    return None


def _tensors(held: Tensor | nn.Module | None) -> dict[str, Tensor]:
    if not isinstance(held, nn.Module):
        return {} if held is None else {"": held}
    return {
        f"{module}.{name}": tensor
        for module, below in named_modules(held)
        for _, name, tensor in own_tensors(below)
    }


def _tell(
    old: dict[str, Tensor], now: Tensor | nn.Module | None, call: str, frame: FrameType
) -> None:
    new = _tensors(now)
    both = [(tensor, new[name]) for name, tensor in old.items() if name in new]
    replaced = [(before, after) for before, after in both if before is not after]
    for listener in tuple(_listeners) if replaced else ():
        listener.saw_replaced(replaced, call, frame)


def _hearing_setattr(original: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: N807
        __tracebackhide__ = True
        held = _held(self, name) if switch.on else None
        old = {} if held is value else _tensors(held)
        original(self, name, value)
        if old:
            call = f"{type(self).__name__}.{name} = ..."
            _tell(old, _held(self, name), call, sys._getframe(1))

    return __setattr__


def _hearing(method: str) -> Callable[[Callable[..., Any], Switch], Callable[..., Any]]:
    """Return what wraps `register_buffer` and its like."""

    def hearing(original: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
        def register(self: nn.Module, name: str, *args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            frame = sys._getframe(1)
            heard = switch.on and frame.f_globals.get("__name__") != nn.Module.__module__
            old = _tensors(_held(self, name)) if heard else {}
            original(self, name, *args, **kwargs)
            if old:
                call = f"{type(self).__name__}.{method}({name!r})"
                _tell(old, _held(self, name), call, frame)

        return register

    return hearing


def _hearing_swap(original: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
    def swap_tensors(t1: Tensor, t2: Tensor) -> None:
        __tracebackhide__ = True
        original(t1, t2)
        for listener in tuple(_listeners) if switch.on else ():
            listener.saw_moved([t1, t2], SWAP, sys._getframe(1))

    return swap_tensors


_listeners: list[Listener] = []
_patches = Patches(
    Patch(nn.Module, "__setattr__", _hearing_setattr),
    *(
        Patch(nn.Module, method, _hearing(method))
        for method in ("register_buffer", "register_parameter", "register_module", "add_module")
    ),
    Patch(torch.utils, "swap_tensors", _hearing_swap),
)


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
