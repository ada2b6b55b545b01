"""Find modules outside a model that share its memory, as traced and exported copies do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.jit import ScriptModule

from pytest_bninvariants.instrumentation.call_sites import place_of_outermost_call
from pytest_bninvariants.instrumentation.module_map import ModuleMap
from pytest_bninvariants.selection.walk import named_modules, own_tensors
from pytest_bninvariants.snapshot.addresses import address, addresses
from pytest_bninvariants.verdict import Place

_GRAPHS = (ScriptModule, GraphModule)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideRun:
    """The first run of a module outside a model that shares memory with it.

    Args:
        name: the module, for use in a sentence.
        place: the line of the outermost call that led to it.
        is_graph: whether it is, or has, a traced, scripted or exported copy of code.
    """

    name: str
    place: Place | None
    is_graph: bool


class OutsideModules:
    """Note where modules outside a model run that share memory with its watched tensors.

    Args:
        modules: ids of the model's own modules.
        tensors: the model's watched tensors.
    """

    def __init__(self, modules: set[int], tensors: list[Tensor]) -> None:
        self._modules = modules
        self._tensors = tensors
        self._known: ModuleMap[None] = ModuleMap()
        self._runs: dict[int, OutsideRun] = {}

    @cached_property
    def memory(self) -> set[int]:
        """Return the addresses of the tensors."""
        return addresses(self._tensors)

    def saw_forward(self, module: nn.Module) -> None:
        """Look at a module that is about to run, once."""
        if id(module) in self._modules or module in self._known:
            return
        self._known.add(module, None)
        outside = [m for _, m in named_modules(module) if id(m) not in self._modules]
        memory = addresses(tensor for each in outside for _, _, tensor in own_tensors(each))
        shared = memory & self.memory
        if shared:
            run = OutsideRun(
                name=f"a {type(module).__name__} outside the model",
                place=place_of_outermost_call(sys._getframe(1)),
                is_graph=any(isinstance(each, _GRAPHS) for each in outside),
            )
            self._runs = dict.fromkeys(shared, run) | self._runs

    def run_of(self, tensor: Tensor) -> OutsideRun | None:
        """Return the first run of a module that shares a tensor's memory."""
        return self._runs.get(address(tensor))
