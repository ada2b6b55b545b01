"""One forward of a BN layer while it runs: its input, and the values that it normalised."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pytest_bninvariants.invariants.bn_updates.state_history import StatisticsSnapshot
from pytest_bninvariants.snapshot.tensor_bytes import are_backed, version

_UNKNOWN = object()
"""The momentum of a layer that has no such attribute; None is that of a cumulative average."""


@dataclass(frozen=True, slots=True)
class VersionedTensor:
    """A tensor, and its version when a forward received it.

    Args:
        tensor: the tensor.
        version: its version at that time; None if it has none.
    """

    tensor: Tensor
    version: int | None

    @classmethod
    def from_tensor(cls, tensor: Tensor | None) -> VersionedTensor | None:
        """Return a tensor with its version; None if there is no tensor."""
        return None if tensor is None else cls(tensor, version(tensor))

    @property
    def has_same_values(self) -> bool:
        """Tell whether it certainly still has the values that the forward received."""
        written = self.version is None or self.version != version(self.tensor)
        return not written and are_backed([self.tensor])


@dataclass(slots=True)
class LayerForward:
    """One forward of a BN layer, or a call of torch's function with the layer's statistics.

    Args:
        layer: the layer.
        before: its statistics before the forward.
        x: the first tensor that the layer was called with.
        training: the layer's mode.
        momentum: the layer's momentum; `_UNKNOWN` if it has none.
        values: the values that it normalised with batch statistics, if it called torch's function
            for that.
        parts: how many times it normalised with batch statistics, each time a part of its batch.
        by_call: whether this is a call of torch's function, and not a forward of the layer.
    """

    layer: nn.Module
    before: StatisticsSnapshot
    x: VersionedTensor | None
    training: bool
    momentum: object
    values: VersionedTensor | None = None
    parts: int = 0
    by_call: bool = False

    @classmethod
    def begin(cls, layer: nn.Module, x: Tensor | None) -> LayerForward:
        """Return the record of a layer's forward that begins."""
        return cls(
            layer=layer,
            before=StatisticsSnapshot.from_layer(layer),
            x=VersionedTensor.from_tensor(x),
            training=layer.training,
            momentum=getattr(layer, "momentum", _UNKNOWN),
        )

    @classmethod
    def begin_call(cls, layer: nn.Module, values: Tensor | None, *, batch: bool) -> LayerForward:
        """Return the record of a call of torch's function with a layer's statistics.

        Args:
            layer: the layer.
            values: the values that the call normalises, if they are known.
            batch: whether it normalises them with batch statistics.
        """
        return cls(
            layer=layer,
            before=StatisticsSnapshot.from_layer(layer),
            x=None,
            training=batch and layer.training,
            momentum=getattr(layer, "momentum", _UNKNOWN),
            values=VersionedTensor.from_tensor(values),
            parts=int(batch),
            by_call=True,
        )

    def add_part(self, values: Tensor | None) -> None:
        """Note that it normalises values with batch statistics; keep them if they are the first."""
        self.parts += 1
        if self.parts == 1:
            self.values = VersionedTensor.from_tensor(values)
        else:
            self.x = self.values = None
