"""Walk a model: its modules and their own tensors, under every name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

Kind = Literal["parameter", "buffer", "output"]


def named_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all below it, under every name, as torch's method unless overridden."""
    yield name, module
    for child, below in module._modules.items():
        if below is not None:
            yield from named_modules(below, join(name, child))


def all_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a module and of all below it."""
    for _, below in named_modules(module):
        for _, _, tensor in own_tensors(below):
            yield tensor


def own_tensors(module: nn.Module) -> Iterator[tuple[Kind, str, Tensor]]:
    """Yield a module's own parameters and buffers, non-persistent ones too."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield "parameter", name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None:
            yield "buffer", name, buffer


def join(parent: str, child: str) -> str:
    """Return the qualified name of what a module calls by a name; the model's own is empty."""
    return f"{parent}.{child}" if parent else child
