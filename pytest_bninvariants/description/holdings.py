"""Which optimizers hold a layer's parameters, and whether they can move them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from pytest_bninvariants.errors import GateError, describe


class ParamGroup(NamedTuple):
    """The group of an optimizer that holds a parameter.

    Args:
        name: the optimizer's class and, if it has several groups, the number of the group.
        steps: whether its learning rate is other than 0.
    """

    name: str
    steps: bool


class Holdings:
    """The groups of all optimizers by the parameters that they hold.

    Args:
        optimizers: None, an optimizer, or several in a list, a tuple or a dict.

    Raises:
        GateError: if one is no optimizer.
    """

    def __init__(self, optimizers: object) -> None:
        self.are_known = optimizers is not None
        self._groups: dict[int, list[ParamGroup]] = {}
        for optimizer in _as_optimizers(optimizers):
            self._add(optimizer)

    def _add(self, optimizer: Optimizer) -> None:
        kind, groups = type(optimizer).__name__, optimizer.param_groups
        for number, group in enumerate(groups):
            name = kind if len(groups) == 1 else f"{kind}[{number}]"
            steps = bool(group.get("lr", 1) != 0)
            for parameter in group["params"]:
                self._groups.setdefault(id(parameter), []).append(ParamGroup(name, steps))

    def of(self, parameters: Iterable[Tensor]) -> list[ParamGroup]:
        """Return the groups that hold any of these parameters, each once."""
        found = (group for each in parameters for group in self._groups.get(id(each), ()))
        return list(dict.fromkeys(found))


def _as_optimizers(given: object) -> Iterator[Optimizer]:
    if given is None:
        return
    several = given.values() if isinstance(given, dict) else given
    if isinstance(several, str) or not isinstance(several, Iterable):
        several = [given]
    for each in several:
        inner = getattr(each, "optimizer", each)  # accelerate and deepspeed wrap them
        optimizer = each if isinstance(each, Optimizer) else inner
        if not isinstance(optimizer, Optimizer):
            raise GateError(
                "optimizer= takes a torch.optim.Optimizer, or several in a list or a dict; got "
                f"{describe(each)}"
            )
        yield optimizer
