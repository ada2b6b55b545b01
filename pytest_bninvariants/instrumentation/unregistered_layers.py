"""Note layers that normalise inside a model's forward and are no submodules of it; find them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from pytest_bninvariants.instrumentation.call_sites import running_modules
from pytest_bninvariants.instrumentation.module_map import ModuleMap
from pytest_bninvariants.selection.walk import all_tensors, join, named_modules
from pytest_bninvariants.snapshot.addresses import address, addresses
from pytest_bninvariants.verdict import Hazard

_REGISTRIES = frozenset({"_parameters", "_buffers", "_modules"})
_DEEPEST = 4  # of lists in lists; a plain attribute may contain itself
_MOST = 8  # a forward may make a new layer each time


class UnregisteredLayers:
    """Note layers that use batch statistics inside a model's forward without belonging to it.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: ModuleMap[None] = ModuleMap()
        self._inside: list[nn.Module] = []

    @cached_property
    def _modules(self) -> set[int]:
        return {id(module) for _, module in named_modules(self._model)}

    def saw_batch_statistics(self, layer: nn.Module) -> None:
        """Look once at a layer that normalises with batch statistics."""
        if id(layer) in self._modules or layer in self._known or len(self._inside) == _MOST:
            return
        self._known.add(layer, None)
        if self._shares_memory(layer):
            return
        if any(id(module) in self._modules for module in running_modules(sys._getframe(1))):
            self._inside.append(layer)

    def _shares_memory(self, layer: nn.Module) -> bool:
        """Tell whether a layer holds the model's own state, as a copy in a compiled graph does."""
        own = addresses(all_tensors(self._model))
        state = [*layer._buffers.values()] or [*layer._parameters.values()]
        return any(each is not None and address(each) in own for each in state)

    def hazards(self) -> Iterator[Hazard]:
        """Yield a hazard for each of them that the model has not registered by now."""
        for layer in name_unregistered(self._model, self._inside):
            text = f"normalised with batch statistics and is not a submodule, since {layer.why}: "
            text += f"eval(), parameters() and state_dict() do not reach it; {layer.fix}"
            yield Hazard(name=layer.name, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnregisteredLayer:
    """A layer that is no submodule of the model that runs it.

    Args:
        name: where the model keeps it, e.g. `norms[0]`, or else its class.
        module: the layer.
        why: how it is kept, for use in a sentence.
        fix: how to register it, in the imperative.
    """

    name: str
    module: nn.Module
    why: str
    fix: str


def name_unregistered(
    model: nn.Module, layers: Sequence[nn.Module], name: str = ""
) -> list[UnregisteredLayer]:
    """Find where a model keeps layers that are no submodules of it; leave out those that are.

    Args:
        model: the model.
        layers: the layers.
        name: the name of the model.
    """
    if not layers:
        return []
    sought = {id(layer): layer for layer in layers}
    for _, part in named_modules(model):
        sought.pop(id(part), None)
    found: dict[int, UnregisteredLayer] = {}
    for owner, part in named_modules(model, name):
        for attribute, value in vars(part).items() if sought else ():
            if attribute not in _REGISTRIES:
                for path, holder, held in _modules_in(value, join(owner, attribute), ""):
                    for below, layer in named_modules(held, path):
                        if id(layer) in sought:
                            found.setdefault(id(layer), _described(below, layer, holder))
    return [found.get(key) or _described("", each, "") for key, each in sought.items()]


def _modules_in(
    value: object, path: str, holder: str, depth: int = 0
) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield the path of each module in a plain value, what holds it, and the module."""
    if isinstance(value, nn.Module):
        yield path, holder, value
    elif depth < _DEEPEST and isinstance(value, dict):
        for key, each in value.items():
            yield from _modules_in(each, f"{path}[{key!r}]", "dict", depth + 1)
    elif depth < _DEEPEST and isinstance(value, list | tuple | set):
        for number, each in enumerate(value):
            yield from _modules_in(each, f"{path}[{number}]", type(value).__name__, depth + 1)


def _described(path: str, layer: nn.Module, holder: str) -> UnregisteredLayer:
    if holder:
        why = f"it is in a plain {holder}"
        fix = f"keep it in an {'nn.ModuleDict' if holder == 'dict' else 'nn.ModuleList'}"
    else:
        why = "nothing registered it"
        fix = "register it as an attribute of the module that calls it, or in an nn.ModuleList"
    name = path or f"a {type(layer).__name__}"
    return UnregisteredLayer(name=name, module=layer, why=why, fix=fix)
