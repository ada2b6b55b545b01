"""Which objects hold which names in a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter, is_

from torch import Tensor, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.walk import join
from pytest_bninvariants.torch_internals.sharding import Slot, stored_parameters

# A walk through a module that contains itself would never end. Checking for one takes another walk,
# so that waits for more modules than real models have, and then for twice as many each time.
_SUSPICIOUSLY_MANY = 2**15
_registries_of = attrgetter("_parameters", "_buffers", "_modules")


class ModelTree:
    """Which objects hold which names in a model.

    It keeps the objects alive, so that no later object can reuse an id.

    Args:
        model: the model.

    Attributes:
        names: the names, and how many parameters, buffers and children each module has.
        types: the types of the modules, then those of the tensors.
        modules: all modules, in the order of their names; None where a name holds no module.
        tensors: all parameters and buffers, in the order of their names; None likewise. In place of
            what FSDP has gathered for a while there are the shards.
    """

    def __init__(self, model: nn.Module) -> None:
        names: list[object] = []
        modules: list[nn.Module | None] = []
        tensors: list[Tensor | None] = []
        pending: list[nn.Module | None] = [model]
        suspicious = _SUSPICIOUSLY_MANY
        while pending:
            module = pending.pop()
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
                pending += reversed([*children.values()])
                if len(modules) > suspicious:
                    suspicious *= 2
                    _refuse_cycles(model, "", [], set())
        stored = stored_parameters(module for module in modules if module is not None)
        if stored:
            tensors = [*_slots_with(stored, modules)]
        self.names, self.modules, self.tensors = names, modules, tensors
        self.types: list[type] = [*map(type, modules), *map(type, tensors)]

    def matches(self, other: ModelTree) -> bool:
        """Tell whether the same objects hold the same names."""
        return (
            self.names == other.names
            and all(map(is_, self.modules, other.modules))
            and all(map(is_, self.tensors, other.tensors))
            and self.types == other.types
        )


def _slots_with(
    stored: Mapping[Slot, Tensor], modules: Iterable[nn.Module | None]
) -> Iterator[Tensor | None]:
    """Yield parameters and buffers by slot, shards in place of what FSDP has gathered."""
    for module in modules:
        if module is not None:
            for name, parameter in module._parameters.items():
                yield stored.get((id(module), name), parameter)
            yield from module._buffers.values()


def _refuse_cycles(module: nn.Module, name: str, parents: list[nn.Module], done: set[int]) -> None:
    """Refuse a module that contains itself: its names would never end."""
    if any(parent is module for parent in parents):
        raise GateError(
            f"{name!r} ({type(module).__name__}) contains itself, through a child module: keep "
            "references to parents out of the module tree, e.g. in a tuple"
        )
    if id(module) not in done:
        for child_name, child in module._modules.items():
            if child is not None:
                _refuse_cycles(child, join(name, child_name), [*parents, module], done)
        done.add(id(module))
