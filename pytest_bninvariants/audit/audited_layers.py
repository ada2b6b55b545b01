"""Records of what an audit saw of each BN layer."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from pytest_bninvariants.audit.call_context import call_context_of
from pytest_bninvariants.audit.frozen_period import FrozenPeriod, begin_frozen_period
from pytest_bninvariants.instrumentation.call_sites import ModeHistory


@dataclass(slots=True, kw_only=True)
class AuditedLayer(ModeHistory):
    """What was seen of one BN layer.

    Args:
        layer: the layer.
        holder: the module whose parameters decide whether it is frozen, if it has none itself.
        ran_in_training: whether it ran in training mode.
        was_frozen: whether it was ever frozen when it did.
        period: its current frozen period, if it is frozen and has run in training mode.
    """

    layer: weakref.ref[nn.Module]
    holder: weakref.ref[nn.Module] | None = None
    ran_in_training: bool = False
    was_frozen: bool = False
    period: FrozenPeriod | None = None

    def is_frozen(self, layer: nn.Module) -> bool:
        """Tell whether no parameter of the layer requires a gradient now.

        If it has no parameters, those of the innermost module around it that has some decide.
        """
        own = [parameter for parameter in layer._parameters.values() if parameter is not None]
        if own:
            return all(map(_is_frozen_parameter, own))
        if self.holder is None:
            context = call_context_of(layer)
            self.holder = None if context is None else context.holder
        holder = None if self.holder is None else self.holder()
        return holder is not None and all(map(_is_frozen_parameter, holder.parameters()))

    def begin_period(self, layer: nn.Module) -> None:
        """Begin a period of the layer, which is frozen, if its state can be compared."""
        holder = None if self.holder is None else self.holder()
        self.period = begin_frozen_period(layer, holder or layer)


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

        record = self.by_id[key] = AuditedLayer(layer=weakref.ref(layer, note_death))
        return record

    def take_dead(self) -> Iterator[AuditedLayer]:
        """Drop and yield the records of layers that have died; one may die at any moment."""
        while self._dead:
            yield self.by_id.pop(self._dead.pop())

    def clear(self) -> None:
        """Drop all records."""
        self.by_id.clear()


def _is_frozen_parameter(parameter: Tensor) -> bool:
    """Tell whether a parameter is frozen; a tensor that `functional_call` put there is not one."""
    return not parameter.requires_grad and isinstance(parameter, nn.Parameter)
