"""Find what `trains=` leaves to the frozen guard that it belongs to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.selection.selection_plan import Selection


def frozen_part(model: nn.Module, scope: Scope, frozen: Scope) -> tuple[set[str], set[str]]:
    """Return the keys of the parameters, and of the layers whose buffers must stay.

    Args:
        model: the model.
        scope: what must train.
        frozen: what must stay.

    Raises:
        GateError: if all that a name of `scope` covers must stay.
    """
    selection = select(model, frozen)
    tensors = selection.tensors.items()
    parameters = {key for key, each in tensors if each.kind == "parameter"}
    layers = {selection.names.bare[each.layer] for _, each in tensors if each.kind == "buffer"}
    for name in scope.modules:
        named = select(model, replace(scope, modules=(name,)))
        if _is_all_frozen(named, parameters):
            raise GateError(
                f"trains={name!r} names only what the same guard freezes: it cannot both train "
                "and stay; name what trains beside it"
            )
    return parameters, layers


def _is_all_frozen(named: Selection, parameters: Collection[str]) -> bool:
    trainable = {key for key, each in named.tensors.items() if each.kind == "parameter"}
    return bool(trainable) and trainable.issubset(parameters)
