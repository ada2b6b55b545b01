"""Find layers that have gradients, in a model that trains, while no optimizer holds them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from torch import nn
from torch.optim import Optimizer

from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.audit.findings.finding import AuditFinding
from pytest_bninvariants.audit.layer_places import LayerPlaces
from pytest_bninvariants.instrumentation.optimizers import place_of_step
from pytest_bninvariants.selection.walk import all_parameters, join, named_modules
from pytest_bninvariants.verdict import Change, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class _UnheldLayer:
    """A layer of which an optimizer that trains its model lacks parameters with a gradient.

    Args:
        context: where it is.
        kind: its class name.
        parameters: the ids of these parameters by name.
        optimizer: the class name of the optimizer.
        stepped_at: where that stepped.
    """

    context: CallContext
    kind: str
    parameters: dict[str, int]
    optimizer: str
    stepped_at: Place | None


class UnheldLayers:
    """What optimizers lacked at their first step; another may yet hold it.

    Args:
        places: the models that ran.
    """

    def __init__(self, places: LayerPlaces) -> None:
        self._places = places
        self._held: set[int] = set()
        self._stepped: dict[int, weakref.ref[Optimizer]] = {}
        self._lacking: list[_UnheldLayer] = []

    def note_held(self, held: set[int]) -> None:
        """Note the ids of parameters that an optimizer holds."""
        self._held |= held

    def before_step(self, optimizer: Optimizer, held: set[int], frame: FrameType | None) -> None:
        """Look at the models that an optimizer is about to train for the first time."""
        known = self._stepped.get(id(optimizer))
        if known is not None and known() is optimizer:
            return
        for model in self._places.models():
            if any(id(each) in held for each in all_parameters(model)):
                self._stepped[id(optimizer)] = weakref.ref(optimizer)
                self._lacking += self._lacked_by(optimizer, held, model, frame)

    def _lacked_by(
        self, optimizer: Optimizer, held: set[int], model: nn.Module, frame: FrameType | None
    ) -> Iterator[_UnheldLayer]:
        for _, module in named_modules(model):
            parameters = {
                name: id(each)
                for name, each in module._parameters.items()
                if each is not None and each.requires_grad and each.grad is not None
            }
            lacked = {name: key for name, key in parameters.items() if key not in held}
            context = self._places.in_model(model, module) if lacked else None
            if context is not None:
                yield _UnheldLayer(
                    context=context,
                    kind=type(module).__name__,
                    parameters=lacked,
                    optimizer=type(optimizer).__name__,
                    stepped_at=place_of_step(frame, optimizer),
                )

    def findings(self) -> Iterator[AuditFinding]:
        """Yield the layers of which no optimizer ever held these parameters."""
        for layer in self._lacking:
            names = [name for name, key in layer.parameters.items() if key not in self._held]
            if names:
                yield AuditFinding(
                    context=layer.context,
                    kind=layer.kind,
                    how="unheld",
                    optimizer=layer.optimizer,
                    stepped_at=layer.stepped_at,
                    changes=tuple(
                        Change(
                            name=join(layer.context.name, name),
                            layer=layer.context.name,
                            kind="still",
                            text="has a gradient, and no optimizer holds it",
                        )
                        for name in names
                    ),
                )
