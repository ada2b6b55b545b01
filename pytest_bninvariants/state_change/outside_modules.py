"""Find modules outside a model that share its memory, as traced and exported copies do."""

from __future__ import annotations

import sys
from functools import cached_property

from torch import Tensor, nn

from pytest_bninvariants.instrumentation.call_sites import place_of_outermost_call
from pytest_bninvariants.selection.walk import named_modules, own_tensors
from pytest_bninvariants.snapshot.addresses import address, addresses
from pytest_bninvariants.state_change.module_map import ModuleMap
from pytest_bninvariants.verdict import Place


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
        self._ran_at: dict[int, Place] = {}

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
        place = place_of_outermost_call(sys._getframe(1))
        if place is not None:
            self._ran_at = dict.fromkeys(memory & self.memory, place) | self._ran_at

    def ran_at(self, tensor: Tensor) -> Place | None:
        """Return where the first module ran that shares a tensor's memory."""
        return self._ran_at.get(address(tensor))
