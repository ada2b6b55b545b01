"""What is known of one change, gathered from the comparison and the witness."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_bninvariants.state_change.tensor_history import TensorHistory
from pytest_bninvariants.state_change.witness import LayerActivity
from pytest_bninvariants.verdict import Change, Place

IDENTITY = ("gone", "new", "dtype", "shape", "layout")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEvidence:
    """All that is known of a layer of which something changed.

    Args:
        name: its qualified name.
        activity: what the witness saw of the module that holds the name now.
        is_bn: whether it is a BN layer.
        began_in_training: its mode when the step began.
        stored: whether it had running statistics when the step began.
        before: the class name of the module that held the name before.
        after: the class name of the module that holds it now; None if it is gone.
        replaced: whether these are two modules, and the first had done nothing yet.
        in_training: its mode now.
        trains: whether one of its own parameters requires a gradient.
        ran: whether its forward was called, in eager code; not torch's own of a BN layer, which
            writes nothing unless it normalises with batch statistics, and that is seen.
    """

    name: str
    activity: LayerActivity
    is_bn: bool
    began_in_training: bool
    stored: bool
    before: str | None
    after: str | None
    replaced: bool
    in_training: bool
    trains: bool
    ran: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEvidence:
    """All that is known of a change.

    Args:
        change: the change.
        layer: the layer that it is of.
        history: what operations did to the tensor.
        factor: by what all of its values shrank, if by one factor.
        casts: names of the types by whose rounding its values came of the old ones.
        stranger: where a module outside of the model that holds the tensor's memory ran.
        had_gradient: whether the tensor asked for a gradient when the step began.
        has_gradient: whether it asks for one now.
        buffer: whether it is of a buffer.
        compiled: whether compiled code ran, into which nobody sees.
        tied: other names of the same tensor, that are not watched.
    """

    change: Change
    layer: LayerEvidence
    history: TensorHistory
    factor: float | None = None
    casts: frozenset[str] = frozenset()
    stranger: Place | None = None
    had_gradient: bool = False
    has_gradient: bool = False
    buffer: bool = False
    compiled: bool = False
    tied: tuple[str, ...] = ()

    @property
    def of_normalising(self) -> bool:
        """Tell whether normalising with batch statistics makes such a change."""
        kind = self.change.kind
        return kind == "batch-statistics" or (
            kind in ("initialised", "values") and (kind != "values" or self.change.of_statistics)
        )

    @property
    def normalised(self) -> bool:
        """Tell whether normalising with batch statistics explains it."""
        seen = self.layer.activity
        if not (self.layer.is_bn and self.of_normalising):
            return False
        return seen.normalised or seen.own_forwards > 0

    @property
    def replaced(self) -> bool:
        """Tell whether another object holds the name."""
        if self.layer.replaced or self.change.kind in IDENTITY:
            return True
        if self.change.kind == "initialised":
            return not self.normalised
        return not self.change.same_object and not self.normalised


def names_of(evidence: list[ChangeEvidence]) -> list[str]:
    """Return the names of the layers, each once; that of the model itself is empty."""
    return list(dict.fromkeys(each.layer.name for each in evidence))


def layers_of(evidence: list[ChangeEvidence]) -> list[LayerEvidence]:
    """Return the layers, each once."""
    return list({each.layer.name: each.layer for each in evidence}.values())
