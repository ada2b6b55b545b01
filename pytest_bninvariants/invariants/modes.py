"""Follow who puts a BN layer in training mode."""

from __future__ import annotations

from dataclasses import dataclass
from types import FrameType

from torch import nn

from pytest_bninvariants.invariants.places import place_of_mode_call
from pytest_bninvariants.invariants.verdict import Place


@dataclass(slots=True)
class Modes:
    """What was seen of a layer's modes.

    Args:
        flipped: whether it was in eval and then put in training mode.
        put_in_training: where it was put in training mode: by the last call that flipped it, or
            the first of all where none has.
    """

    flipped: bool = False
    put_in_training: Place | None = None

    def saw_training_set(self, module: nn.Module, frame: FrameType, *, restores: bool) -> None:
        """Note that the layer is being put in training mode.

        Args:
            module: the layer, still in its old mode.
            frame: who does it.
            restores: whether they only put it back where it was.
        """
        flips = not module.training
        self.flipped |= flips
        if (flips or self.put_in_training is None) and not restores:
            self.put_in_training = place_of_mode_call(frame, module, True)
