"""Observe `tensor.data = other`, `module.name = other` and the like, which are not operators."""

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


class AssignmentListener(Protocol):
    """An object that is told of assignments."""

    def saw_new_memory(self, tensors: Sequence[Tensor], call: str, frame: FrameType) -> None:
        """Note that a call in this frame gave tensors other memory."""

    def saw_replacements(
        self, pairs: Sequence[tuple[Tensor, Tensor]], call: str, frame: FrameType
    ) -> None:
        """Note that a call in this frame replaced the first tensor of each pair by the second."""


class _ObservedData:
    """Shadow `torch.Tensor.data`, a descriptor of a base class that cannot be patched itself."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __get__(self, tensor: Tensor | None, owner: type) -> Any:
        return self._original if tensor is None else self._original.__get__(tensor, owner)

    def __set__(self, tensor: Tensor, value: Tensor) -> None:
        self._original.__set__(tensor, value)
        for listener in tuple(_listeners):
            listener.saw_new_memory([tensor], DATA_SET, sys._getframe(1))


def _registered(module: nn.Module, name: str) -> Tensor | nn.Module | None:
    """Return what a module has registered under a name; it lacks registries before __init__."""
    for registry in ("_parameters", "_buffers", "_modules"):
        value: Tensor | nn.Module | None = vars(module).get(registry, {}).get(name)
        if value is not None:
            return value
    return None


def _tensors_by_name(value: Tensor | nn.Module | None) -> dict[str, Tensor]:
    if not isinstance(value, nn.Module):
        return {} if value is None else {"": value}
    return {
        f"{module_name}.{name}": tensor
        for module_name, module in named_modules(value)
        for _, name, tensor in own_tensors(module)
    }


def _report_replaced(
    old: dict[str, Tensor], now: Tensor | nn.Module | None, call: str, frame: FrameType
) -> None:
    """Tell listeners which tensors were replaced, and by which."""
    new = _tensors_by_name(now)
    pairs = [(tensor, new[name]) for name, tensor in old.items() if name in new]
    replaced = [(before, after) for before, after in pairs if before is not after]
    if replaced:
        for listener in tuple(_listeners):
            listener.saw_replacements(replaced, call, frame)


def _observing_setattr(original: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
    def __setattr__(self: nn.Module, name: str, value: Any) -> None:  # noqa: N807
        __tracebackhide__ = True
        before = _registered(self, name) if switch.on else None
        old = {} if before is value else _tensors_by_name(before)
        original(self, name, value)
        if old:
            call = f"{type(self).__name__}.{name} = ..."
            _report_replaced(old, _registered(self, name), call, sys._getframe(1))

    return __setattr__


def _observing_register(method: str) -> Callable[[Callable[..., Any], Switch], Callable[..., Any]]:
    """Return a maker of wrappers around `register_buffer` or a method like it."""

    def observing(original: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
        def register(self: nn.Module, name: str, *args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            frame = sys._getframe(1)
            # nn.Module's own __setattr__ registers parameters, and is observed itself
            by_user = frame.f_globals.get("__name__") != nn.Module.__module__
            old = _tensors_by_name(_registered(self, name)) if switch.on and by_user else {}
            original(self, name, *args, **kwargs)
            if old:
                call = f"{type(self).__name__}.{method}({name!r})"
                _report_replaced(old, _registered(self, name), call, frame)

        return register

    return observing


def _observing_swap(original: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
    def swap_tensors(t1: Tensor, t2: Tensor) -> None:
        __tracebackhide__ = True
        original(t1, t2)
        if switch.on:
            for listener in tuple(_listeners):
                listener.saw_new_memory([t1, t2], SWAP, sys._getframe(1))

    return swap_tensors


_listeners: list[AssignmentListener] = []
_patches = Patches(
    Patch(nn.Module, "__setattr__", _observing_setattr),
    *(
        Patch(nn.Module, method, _observing_register(method))
        for method in ("register_buffer", "register_parameter", "register_module", "add_module")
    ),
    Patch(torch.utils, "swap_tensors", _observing_swap),
)


def add_listener(listener: AssignmentListener) -> None:
    """Tell a listener of assignments from now on."""
    if not _listeners:
        torch.Tensor.data = _ObservedData(torch.Tensor.data)  # type: ignore[assignment]
        _patches.install()
    _listeners.append(listener)


def remove_listener(listener: AssignmentListener) -> None:
    """Stop telling a listener; do nothing if it is not being told."""
    if listener not in _listeners:
        return
    _listeners.remove(listener)
    if not _listeners:
        del torch.Tensor.data
        _patches.remove()
