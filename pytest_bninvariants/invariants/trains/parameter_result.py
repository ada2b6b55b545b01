"""The result for one parameter that must train, at the end of a step."""

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
    """A parameter that must train, at the end of a step.

    Args:
        name: its qualified name.
        record: what optimizers did with it.
        moved: whether its bytes changed.
        requires_grad: whether it requires a gradient.
        twins: its other names in the model, as far as they need not train.
        shrank: whether a step without a gradient scaled it by one factor, as weight decay does.
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
        """Tell whether it moved by more than what an optimizer does without a gradient."""
        decayed = self.shrank or (self.record.optimizer and self.record.gradient == "zero")
        return self.moved and not decayed

    @property
    def group(self) -> tuple[str, int]:
        """Return the optimizer that holds it, and the number of its parameter group."""
        return self.record.optimizer, self.record.group

    @property
    def is_negligible(self) -> bool:
        """Tell whether its step was too small to matter, as for a bias before a BatchNorm.

        In half precision it is not negligible: rounding may swallow a healthy step.
        """
        record = self.record
        stepped = self.requires_grad and record.gradient == "nonzero" and record.rate > 0
        moved = self.moved or record.moved
        return self.dtype in (torch.float32, torch.float64) and stepped and not moved

    @property
    def text(self) -> str:
        """Return how it failed to train."""
        record = self.record
        if not self.requires_grad:
            return "did not move; requires_grad is False"
        if not record.optimizer:
            return "did not move; no optimizer that holds it stepped"
        did = "moved by decay or moments alone" if self.moved else "did not move"
        stepped = f"{record.optimizer} (group {record.group}) stepped with lr {record.rate:g}"
        return f"{did}; {stepped} and {_GRADIENTS[record.gradient].format(size=record.size)}"

    @property
    def hazard(self) -> str:
        """Return the warning for a negligible parameter whose group trained."""
        return (
            f"did not move: a gradient of up to {self.record.size:.1e} was rounded away, as "
            "happens to a bias before a BatchNorm, which has no effect"
        )
