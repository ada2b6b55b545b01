"""Walk a model: its modules and their own tensors, under every name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from pytest_bninvariants.torch_internals.sharding import stored_parameters

Kind = Literal["parameter", "buffer", "output"]


def registered(registry: Mapping[str, Any], name: str) -> Any:
    """Return what a module has under a name; None if nothing. A scripted module's has no get()."""
    if name in registry:
        return registry[name]
    return None


def named_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all its submodules, under every name.

    Unlike the method of `nn.Module`, no subclass can override it.
    """
    yield name, module
    for child_name, child in module._modules.items():
        if child is not None:
            yield from named_modules(child, join(name, child_name))


def all_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a module and of all its submodules."""
    for _, submodule in named_modules(module):
        for _, _, tensor in own_tensors(submodule):
            yield tensor


def all_parameters(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters of a module and of all its submodules, as `stored_tensors` does.

    Unlike the method of `nn.Module`, nobody observes it.
    """
    modules = [each for _, each in named_modules(module)]
    return (tensor for kind, tensor in stored_tensors(modules) if kind == "parameter")


def stored_tensors(modules: Sequence[nn.Module]) -> Iterator[tuple[Kind, Tensor]]:
    """Yield the own tensors of modules, shards in place of what FSDP has gathered for a while."""
    stored = stored_parameters(modules)
    for module in modules:
        for kind, name, tensor in own_tensors(module):
            yield kind, stored.get((id(module), name), tensor) if stored else tensor


def own_tensors(module: nn.Module) -> Iterator[tuple[Kind, str, Tensor]]:
    """Yield a module's own parameters and buffers, non-persistent ones too."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield "parameter", name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None:
            yield "buffer", name, buffer


def join(parent: str, child: str) -> str:
    """Return the qualified name of a module's child; the name of the model itself is empty."""
    return f"{parent}.{child}" if parent else child
