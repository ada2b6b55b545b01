"""What an audit saw of each BN layer."""

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
        holder: the module whose parameters tell whether it is frozen, where it has none itself.
        ran_in_training: whether it ran in training mode.
        was_frozen: whether it ever was frozen then.
        period: while it is frozen and runs in training mode.
    """

    layer: weakref.ref[nn.Module]
    holder: weakref.ref[nn.Module] | None = None
    ran_in_training: bool = False
    was_frozen: bool = False
    period: FrozenPeriod | None = None

    def is_frozen(self, layer: nn.Module) -> bool:
        """Tell whether no parameter of the layer requires a gradient now.

        Of a layer without parameters, those of the innermost module around it that has some tell.
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
        """Keep the state that the layer, which is frozen, is compared with, if that can be."""
        holder = None if self.holder is None else self.holder()
        self.period = begin_frozen_period(layer, holder or layer)


class AuditedLayers:
    """What was seen of BN layers, by identity; that of a layer that died waits to be taken."""

    def __init__(self) -> None:
        self.by_id: dict[int, AuditedLayer] = {}
        self._dead: list[int] = []

    def __iter__(self) -> Iterator[AuditedLayer]:
        return iter(list(self.by_id.values()))

    def __len__(self) -> int:
        return len(self.by_id)

    def get(self, layer: nn.Module) -> AuditedLayer | None:
        """Return what was seen of a layer."""
        seen = self.by_id.get(id(layer))
        return seen if seen is not None and seen.layer() is layer else None

    def add(self, layer: nn.Module) -> AuditedLayer:
        """Begin to keep what is seen of a layer; the dead must have been taken before."""
        key, dead = id(layer), self._dead

        def died(_: object) -> None:
            dead.append(key)

        seen = self.by_id[key] = AuditedLayer(layer=weakref.ref(layer, died))
        return seen

    def take_dead(self) -> Iterator[AuditedLayer]:
        """Drop and yield what was seen of layers that died: they may at any moment."""
        while self._dead:
            yield self.by_id.pop(self._dead.pop())

    def clear(self) -> None:
        """Drop all."""
        self.by_id.clear()


def _is_frozen_parameter(parameter: Tensor) -> bool:
    """Tell whether a parameter requires no gradient; what `functional_call` puts there is none."""
    return not parameter.requires_grad and isinstance(parameter, nn.Parameter)
