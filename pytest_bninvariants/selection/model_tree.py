"""Which objects hold which names in a model."""

from __future__ import annotations

from operator import attrgetter, is_

from torch import Tensor, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.walk import join

# A module below itself would keep the walk from ending. Looking for one takes a walk of its own, so
# it waits until there are more modules than models have, and then for twice as many each time.
_SUSPICIOUSLY_MANY = 2**15
_registries_of = attrgetter("_parameters", "_buffers", "_modules")


class ModelTree:
    """Which objects hold which names in a model.

    It keeps them alive, so that no later object can have the identity of one of them.

    Args:
        model: the model.

    Attributes:
        names: the names, and how many each module has of parameters, buffers and children.
        types: the types of the modules, and of what they hold.
        modules: all modules, in the order of their names; None where a name holds none.
        tensors: all parameters and buffers, likewise.
    """

    def __init__(self, model: nn.Module) -> None:
        names: list[object] = []
        modules: list[nn.Module | None] = []
        tensors: list[Tensor | None] = []
        waiting: list[nn.Module | None] = [model]
        suspicious = _SUSPICIOUSLY_MANY
        while waiting:
            module = waiting.pop()
            modules.append(module)
            if module is None:
                continue
            parameters, buffers, children = _registries_of(module)
            names += len(parameters), len(buffers), len(children)
            if parameters:
                names += parameters.keys()
                tensors += parameters.values()
            if buffers:
                names += buffers.keys()
                tensors += buffers.values()
            if children:
                names += children.keys()
                waiting += reversed([*children.values()])
                if len(modules) > suspicious:
                    suspicious *= 2
                    _refuse_cycles(model, "", [], set())
        self.names, self.modules, self.tensors = names, modules, tensors
        self.types: list[type] = [*map(type, modules), *map(type, tensors)]

    def is_like(self, other: ModelTree) -> bool:
        """Tell whether the same objects hold the same names."""
        return (
            self.names == other.names
            and all(map(is_, self.modules, other.modules))
            and all(map(is_, self.tensors, other.tensors))
            and self.types == other.types
        )


def _refuse_cycles(module: nn.Module, name: str, above: list[nn.Module], known: set[int]) -> None:
    """Refuse a module that is below itself: its names would never end."""
    if any(each is module for each in above):
        raise GateError(
            f"{name!r} ({type(module).__name__}) contains itself, through a child module: keep "
            "references to parents out of the module tree, e.g. in a tuple"
        )
    if id(module) not in known:
        for child, below in module._modules.items():
            if below is not None:
                _refuse_cycles(below, join(name, child), [*above, module], known)
        known.add(id(module))
