"""What became of one parameter that is to train, at the end of a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_bninvariants.instrumentation.optimizers import Gradient
from pytest_bninvariants.invariants.trains.parameter_log import ParameterRecord

_GRADIENTS: dict[Gradient, str] = {
    "none": "no gradient",
    "zero": "a gradient of zeros",
    "nonzero": "a gradient of up to {size:.1e}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterResult:
    """A parameter that is to train, at the end of a step.

    Args:
        name: its qualified name.
        record: what was seen of it in optimizers' steps.
        moved: whether its bytes changed.
        requires_grad: whether it requires a gradient.
        twins: its other names in the model, which are not among those that must train.
        shrank: whether it moved by one factor in a step without a gradient, as decay moves it.
        dtype: its dtype.
        stepped: class names of the optimizers that stepped.
    """

    name: str
    record: ParameterRecord
    moved: bool
    requires_grad: bool
    twins: list[str]
    shrank: bool
    dtype: torch.dtype
    stepped: list[str]

    @property
    def trained(self) -> bool:
        """Tell whether it moved, by more than what an optimizer does without a gradient."""
        decayed = self.shrank or (self.record.held_by and self.record.gradient == "zero")
        return self.moved and not decayed

    @property
    def group(self) -> tuple[str, int]:
        """Return what stepped for it."""
        return self.record.held_by, self.record.group

    @property
    def is_negligible(self) -> bool:
        """Tell whether its step was next to nothing, as that of a bias before a BatchNorm.

        In half precision it may be a healthy one that is rounded away.
        """
        record = self.record
        stepped = self.requires_grad and record.gradient == "nonzero" and record.rate > 0
        moved = self.moved or record.moved
        return self.dtype in (torch.float32, torch.float64) and stepped and not moved

    @property
    def text(self) -> str:
        """Return what it did not do."""
        record = self.record
        if not self.requires_grad:
            return "did not move; requires_grad is False"
        if not record.held_by:
            return "did not move; no optimizer that holds it stepped"
        did = "moved by decay or moments alone" if self.moved else "did not move"
        stepped = f"{record.held_by} (group {record.group}) stepped with lr {record.rate:g}"
        return f"{did}; {stepped} and {_GRADIENTS[record.gradient].format(size=record.size)}"

    @property
    def hazard(self) -> str:
        """Return what to say where it stood still while others of its group moved."""
        return (
            f"did not move: a gradient of up to {self.record.size:.1e} was rounded away, as "
            "happens to a bias before a BatchNorm, which has no effect"
        )
