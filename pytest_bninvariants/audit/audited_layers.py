"""Records of what an audit saw of each BN layer."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pytest_bninvariants.audit.averaging_check import FrozenParameters
from pytest_bninvariants.audit.call_context import CallContext, call_context_of
from pytest_bninvariants.audit.findings.finding import AuditFinding
from pytest_bninvariants.audit.frozen_period import FrozenPeriod
from pytest_bninvariants.instrumentation.call_sites import ModeHistory
from pytest_bninvariants.selection.bn_layers import has_stored_statistics
from pytest_bninvariants.selection.walk import all_parameters, registered


@dataclass(slots=True, kw_only=True)
class AuditedLayer(ModeHistory):
    """What was seen of one BN layer.

    Args:
        layer: the layer.
        holder: the module whose parameters decide whether it is frozen, if it has none itself.
        kind: its class name.
        buffers: its buffers by name, as they are now; the layer itself may be gone at the end.
        ran: whether it ran at all.
        ran_in_training: whether it ran in training mode.
        context: where it was when it first did.
        recomputed: how many batches it normalised again in backward.
        was_frozen: whether it was ever frozen when it did.
        trains: whether it ran in training mode with gradients, or an optimizer holds its
            parameters.
        early: its parameters since somebody first read them, until it runs.
        period: its current period, if its statistics should stay.
        ran_in: the modules that ran, the outermost first, when it first ran in eval with gradients.
        stuck: that an optimizer trained it in eval, unless it ran in training mode after that.
    """

    layer: weakref.ref[nn.Module]
    holder: weakref.ref[nn.Module] | None = None
    kind: str
    buffers: Mapping[str, Tensor | None]
    ran: bool = False
    ran_in_training: bool = False
    context: CallContext | None = None
    recomputed: int = 0
    was_frozen: bool = False
    trains: bool = False
    early: FrozenParameters | None = None
    period: FrozenPeriod | None = None
    ran_in: tuple[weakref.ref[nn.Module], ...] = ()
    stuck: AuditFinding | None = None

    def is_frozen(self, layer: nn.Module) -> bool:
        """Tell whether no parameter of the layer requires a gradient now.

        If it has no parameters, those of the innermost module around it that has some decide.
        """
        own = list(own_parameters(layer))
        if own:
            return all(map(_is_frozen_parameter, own))
        if self.holder is None:
            context = call_context_of(layer)
            self.holder = None if context is None else context.holder
        holder = self.holder_of(layer)
        return holder is not layer and all(map(_is_frozen_parameter, all_parameters(holder)))

    def holder_of(self, layer: nn.Module) -> nn.Module:
        """Return the module whose parameters decide: the layer, or a known one around it."""
        holder = None if self.holder is None else self.holder()
        return holder or layer


class AuditedLayers:
    """The records of BN layers, by identity; those of dead layers wait for `take_dead`."""

    def __init__(self) -> None:
        self.by_id: dict[int, AuditedLayer] = {}
        self._dead: list[int] = []

    def __iter__(self) -> Iterator[AuditedLayer]:
        return iter(list(self.by_id.values()))

    def __len__(self) -> int:
        return len(self.by_id)

    def get(self, layer: nn.Module) -> AuditedLayer | None:
        """Return the record of a layer."""
        record = self.by_id.get(id(layer))
        return record if record is not None and record.layer() is layer else None

    def add(self, layer: nn.Module) -> AuditedLayer:
        """Add a record of a layer; the caller must have called `take_dead`."""
        key, dead = id(layer), self._dead

        def note_death(_: object) -> None:
            dead.append(key)

        record = self.by_id[key] = AuditedLayer(
            layer=weakref.ref(layer, note_death),
            kind=type(layer).__name__,
            buffers=layer._buffers,
        )
        return record

    def take_dead(self) -> Iterator[AuditedLayer]:
        """Drop and yield the records of layers that have died; one may die at any moment."""
        while self._dead:
            yield self.by_id.pop(self._dead.pop())

    def clear(self) -> None:
        """Drop all records."""
        self.by_id.clear()

    def any_trains_like(self, layer: nn.Module) -> bool:
        """Tell whether another layer of the same kind and size trains, as a student's does."""
        return any(
            (other := record.layer()) is not None
            and other is not layer
            and type(other) is type(layer)
            and _size(other) == _size(layer)
            and any(each.requires_grad for each in all_parameters(record.holder_of(other)))
            for record in self
        )


def own_parameters(layer: nn.Module) -> Iterable[Tensor]:
    """Return a layer's own parameters."""
    return (parameter for parameter in layer._parameters.values() if parameter is not None)


def layers_in(
    module: nn.Module, around: tuple[nn.Module, ...] = ()
) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """Yield the BN layers in a module, each with the innermost module that has parameters."""
    path = (*around, module)
    if has_stored_statistics(module):
        holders = (each for each in reversed(path) if next(all_parameters(each), None) is not None)
        yield module, next(holders, None)
    for child in module._modules.values():
        if child is not None:
            yield from layers_in(child, path)


def _size(layer: nn.Module) -> object:
    mean = registered(layer._buffers, "running_mean")
    return None if mean is None else mean.shape


def _is_frozen_parameter(parameter: Tensor) -> bool:
    """Tell whether a parameter is frozen; a tensor that `functional_call` put there is not one."""
    return not parameter.requires_grad and isinstance(parameter, nn.Parameter)
