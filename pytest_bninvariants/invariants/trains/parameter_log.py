"""Follow parameters through the steps of the optimizers that train them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pytest_bninvariants.instrumentation.installation import Watcher
from pytest_bninvariants.instrumentation.observer_api import AfterCall
from pytest_bninvariants.instrumentation.optimizers import Gradient, gradient_of
from pytest_bninvariants.snapshot.tensor_bytes import content_of, same_content, values_of
from pytest_bninvariants.torch_internals.isolation import undisturbed

_RANK: dict[Gradient, int] = {"none": 0, "zero": 1, "nonzero": 2}


@dataclass(slots=True)
class ParameterRecord:
    """What optimizers did with one parameter.

    Args:
        optimizer: class name of an optimizer that holds it and stepped; empty if there is none.
        group: the number of the parameter group that holds it.
        rate: the largest learning rate that it stepped with.
        gradient: its gradient at a step, of several steps the most that there was.
        size: the largest magnitude in its gradients.
        moved: whether a step moved it.
    """

    optimizer: str = ""
    group: int = 0
    rate: float = 0.0
    gradient: Gradient = "none"
    size: float = 0.0
    moved: bool = False


class ParameterLog(Watcher):
    """Follow some parameters during one step.

    Args:
        parameters: the parameters.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._records = {id(parameter): (parameter, ParameterRecord()) for parameter in parameters}
        self.stepped: list[str] = []
        """Class names of the optimizers that stepped, whatever they hold."""

    def record_of(self, parameter: Tensor) -> ParameterRecord:
        """Return the record of a parameter."""
        return self._records[id(parameter)][1]

    def before_step(
        self, optimizer: Optimizer, frame: FrameType | None, *, closure: bool
    ) -> AfterCall | None:
        """Note what an optimizer steps with; return a function that notes what its step moved."""
        name = type(optimizer).__name__
        if name not in self.stepped:
            self.stepped.append(name)
        before = []
        with undisturbed():
            for number, group in enumerate(optimizer.param_groups):
                for parameter in group["params"]:
                    if id(parameter) in self._records:
                        self._note_holder(parameter, name, number, _rate(group))
                        before.append((parameter, content_of(parameter)))
                        if not closure:
                            self._note_gradient(parameter)

        def finish() -> None:
            with undisturbed():
                for parameter, content in before:
                    if not same_content(content, parameter):
                        self.record_of(parameter).moved = True
                    if closure:
                        self._note_gradient(parameter)

        return finish

    def _note_holder(self, parameter: Tensor, optimizer: str, group: int, rate: float) -> None:
        record = self.record_of(parameter)
        record.optimizer, record.group = optimizer, group
        record.rate = max(record.rate, rate)

    def _note_gradient(self, parameter: Tensor) -> None:
        record = self.record_of(parameter)
        record.gradient = max(record.gradient, gradient_of(parameter), key=_RANK.__getitem__)
        grad = parameter.grad
        if grad is not None:
            sizes = (float(each.abs().max()) for each in values_of(grad) if each.numel())
            record.size = max(record.size, *sizes, 0.0)


def _rate(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate; optimizers that choose their own have None there."""
    rate = group.get("lr")
    return 1.0 if rate is None else float(rate)
