"""Watch a BN layer's forwards while it is frozen, and tell whether its statistics moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pytest_bninvariants.audit.averaging_check import FrozenParameters
from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.bn_layers import BN_STATE, STATISTICS
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.snapshot import Snapshot, take_snapshot
from pytest_bninvariants.snapshot.tensor_bytes import is_uninitialised
from pytest_bninvariants.torch_internals.isolation import in_transform, undisturbed
from pytest_bninvariants.verdict import Change


@dataclass(slots=True)
class FrozenPeriod:
    """The forwards in training mode of one frozen layer.

    Args:
        kind: the layer's class name.
        kept: its statistics before the first of them.
        parameters: its parameters, or its holder's.
        context: the context of the first one that used batch statistics; None before that.
        batches: how many of them used batch statistics.
    """

    kind: str
    kept: Snapshot
    parameters: FrozenParameters
    context: CallContext | None = None
    batches: int = 0

    def moved(self, now: Mapping[str, Tensor] | None = None) -> list[Change]:
        """Return the changes of the layer's statistics, unless models were averaged meanwhile.

        Args:
            now: the tensors to compare, by name; by default, the tensor objects that were kept.
        """
        held = now or {}
        watched = {
            key: kept.watched._replace(tensor=held.get(key, kept.watched.tensor))
            for key, kept in self.kept.items()
        }
        with undisturbed():
            changes = changes_since(self.kept, watched, ())
        moved = {change.name for change in changes if change.kind == "values"}
        return changes if moved & {*STATISTICS} and not self.parameters.averaged else []

    def keeps(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is one of the layer's statistics."""
        return any(tensor is kept.watched.tensor for kept in self.kept.values())


def begin_frozen_period(layer: nn.Module, holder: nn.Module) -> FrozenPeriod | None:
    """Keep the state of a frozen layer; return None if that cannot be compared later.

    Args:
        layer: the layer.
        holder: the module whose parameters are frozen: the layer itself, or one around it.
    """
    buffers = buffers_of(layer)
    if in_transform() or is_uninitialised(buffers["running_mean"]):
        return None  # it holds values of a function transform, or none yet
    watched = {
        name: WatchedTensor(name, "", "buffer", each)
        for name, each in buffers.items()
        if name in BN_STATE
    }
    try:
        with undisturbed():
            kept = take_snapshot(watched)
            return FrozenPeriod(type(layer).__name__, kept, FrozenParameters(holder))
    except GateError:
        return None


def buffers_of(layer: nn.Module) -> dict[str, Tensor]:
    """Return a layer's own buffers by name."""
    return {name: buffer for name, buffer in layer._buffers.items() if buffer is not None}
