"""The result for one parameter that must train, at the end of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isinf

import torch

from pytest_bninvariants.instrumentation.optimizers import Gradient
from pytest_bninvariants.invariants.trains.parameter_record import ParameterRecord

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
        record: what optimizers and loads did with it.
        moved: whether its bytes changed.
        replaced: whether another tensor has its name now, with values that no step led to.
        overwritten: whether its values have nothing of those that the latest step left.
        not_finite: how many of its values became NaN or infinite.
        may_have_missed: whether steps of optimizers may have been missed.
        requires_grad: whether it requires a gradient.
        twins: its other names in the model, as far as they need not train.
        shrank: whether a step without a gradient scaled it by one factor, as weight decay does.
        dtype: its dtype.
        stepped: class names of the optimizers that stepped.
        gone: why no parameter has its name now; empty if one has.
        zeros: other parameters that trained, of whose values none differed from 0 at the start.
    """

    name: str
    record: ParameterRecord
    moved: bool
    replaced: bool
    overwritten: bool
    not_finite: int
    may_have_missed: bool
    requires_grad: bool
    twins: list[str]
    shrank: bool
    dtype: torch.dtype
    stepped: list[str]
    gone: str = ""
    zeros: list[str] = field(default_factory=list)

    @property
    def trained(self) -> bool:
        """Tell whether steps moved it, by more than what an optimizer does without a gradient."""
        record = self.record
        decayed = self.shrank or (record.optimizer and record.gradient == "zero")
        return self.moved and not (
            decayed or self.not_finite or record.loaded or self.overwritten or self.is_unexplained
        )

    @property
    def is_unexplained(self) -> bool:
        """Tell whether it moved, and not as steps of optimizers or of the user's own code move it.

        Of a parameter that needs no gradient, such as that of a moving average, any move will do.
        """
        record = self.record
        if not self.moved or record.moved or record.may_have_moved or record.by_hand.trained:
            return False
        return self.replaced or (self.requires_grad and not self.may_have_missed)

    @property
    def left_zero(self) -> bool:
        """Tell whether it was all zeros before it trained; a bias often is, and is no factor."""
        start = self.record.start
        is_factor = self.trained and not self.name.endswith("bias")
        return is_factor and start is not None and not bool(start.any())

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
        moved = self.moved or record.moved or isinf(record.size)
        return self.dtype in (torch.float32, torch.float64) and stepped and not moved

    @property
    def was_left(self) -> bool:
        """Tell whether its optimizer left it, by a step that its dtype would not round away.

        Whether the optimizer scales by the gradient, as SGD, or not, as Adam, the step is so large.
        """
        start, record = self.record.start, self.record
        if start is None or not start.numel() or record.gradient != "nonzero":
            return False
        step = record.rate * min(record.size, 1.0)
        return step > torch.finfo(self.dtype).eps * float(start.abs().max())

    @property
    def text(self) -> str:
        """Return how it failed to train."""
        record = self.record
        if self.gone:
            return "is no parameter now"
        if self.not_finite:
            return f"{self.not_finite} of its values became NaN or infinite"
        if record.loaded and self.moved:
            return "got its values from a state_dict"
        if self.overwritten:
            return f"was written over after {record.optimizer} stepped"
        if not self.requires_grad:
            return "did not move; requires_grad is False"
        if not record.optimizer:
            return f"{self._move}; no optimizer that holds it stepped"
        stepped = f"{record.optimizer} (group {record.group}) stepped with lr {record.rate:g}"
        gradient = _GRADIENTS[record.gradient].format(size=record.size)
        if isinf(record.size):
            gradient = "a gradient that is not finite"
        return f"{self._move}; {stepped} and {gradient}"

    @property
    def _move(self) -> str:
        if self.replaced:
            return "is another tensor now"
        if self.is_unexplained:
            return "moved outside of any step"
        return "moved by decay or moments alone" if self.moved else "did not move"

    @property
    def hazard(self) -> str:
        """Return the warning for a negligible parameter whose group trained."""
        return (
            f"did not move: a gradient of up to {self.record.size:.1e} was rounded away, as "
            "happens to a bias before a BatchNorm, which has no effect"
        )
