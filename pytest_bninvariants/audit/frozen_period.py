"""Watch a BN layer while its statistics should stay, and tell whether they moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pytest_bninvariants.audit.averaging_check import FrozenParameters
from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.bn_layers import BN_STATE, STATISTICS
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.reads.layer_drift import with_drift
from pytest_bninvariants.snapshot.snapshot import Snapshot, take_snapshot
from pytest_bninvariants.snapshot.tensor_bytes import is_uninitialised
from pytest_bninvariants.torch_internals.isolation import in_transform, undisturbed
from pytest_bninvariants.verdict import Change

Stay = Literal["training", "eval", "no-grad"]
"""Why a layer's statistics should stay: it is frozen, and runs in training mode or in eval; or it
runs in training mode under no_grad, and was not seen to train."""


@dataclass(slots=True)
class FrozenPeriod:
    """The forwards of one layer while its statistics should stay.

    Args:
        stay: why they should.
        kind: the layer's class name.
        kept: its statistics before the first of these forwards.
        buffers: its buffers by name, as they are now; the layer itself may be gone at the end.
        parameters: its parameters, or its holder's.
        eps: what it adds to its variance.
        context: the context of the first forward, or, in training mode, of the first that used
            batch statistics; None before that.
        batches: how many forwards used batch statistics.
        trained_beside: whether an optimizer trained something since then.
    """

    stay: Stay
    kind: str
    kept: Snapshot
    buffers: Mapping[str, Tensor | None]
    parameters: FrozenParameters
    eps: object
    context: CallContext | None = None
    batches: int = 0
    trained_beside: bool = False

    def moved(self) -> list[Change]:
        """Return the changes of the layer's statistics, unless models were averaged meanwhile."""
        with undisturbed():
            watched = {
                key: kept.watched._replace(tensor=self._now(key, kept.watched.tensor))
                for key, kept in self.kept.items()
            }
            changes = changes_since(self.kept, watched, ())
            changes = with_drift(changes, self.kept, watched, {"": self.eps})
        moved = {change.name for change in changes if change.kind == "values"}
        return changes if moved & {*STATISTICS} and not self.parameters.averaged else []

    def _now(self, name: str, kept: Tensor) -> Tensor:
        """Return what holds a name now; the tensor that was kept, if that was cast meanwhile."""
        now = self.buffers.get(name)
        if now is None or (now.dtype, now.shape) != (kept.dtype, kept.shape):
            return kept
        return now

    @property
    def is_reset(self) -> bool:
        """Tell whether the statistics are those of a new layer."""
        with undisturbed():
            kept = [self.kept[name].watched.tensor for name in STATISTICS]
            mean, variance = map(self._now, STATISTICS, kept)
            return bool((mean == 0).all()) and bool((variance == 1).all())

    def keeps(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is one of the layer's statistics."""
        return any(tensor is kept.watched.tensor for kept in self.kept.values())


def begin_frozen_period(
    layer: nn.Module, holder: nn.Module, stay: Stay, parameters: FrozenParameters | None
) -> FrozenPeriod | None:
    """Keep the state of a layer; return None if that cannot be compared later.

    Args:
        layer: the layer.
        holder: the module whose parameters are frozen: the layer itself, or one around it.
        stay: why its statistics should stay.
        parameters: what is known of these parameters already.
    """
    buffers = layer._buffers
    mean = buffers["running_mean"]
    if mean is None or in_transform() or is_uninitialised(mean):
        return None  # it holds values of a function transform, or none yet
    watched = {
        name: WatchedTensor(name, "", "buffer", each)
        for name, each in buffers.items()
        if name in BN_STATE and each is not None
    }
    try:
        with undisturbed():
            kept = take_snapshot(watched)
    except GateError:
        return None
    parameters = parameters or FrozenParameters(holder)
    eps = getattr(layer, "eps", None)
    return FrozenPeriod(stay, type(layer).__name__, kept, buffers, parameters, eps)
