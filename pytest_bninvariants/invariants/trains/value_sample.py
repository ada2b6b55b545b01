"""A few values of a tensor, which tell in little time whether and in which direction it moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS, values_of

_MOST_VALUES = 256
_MOSTLY = 0.9


def sample_of(tensor: Tensor) -> Tensor | None:
    """Return up to 256 values of a tensor, spread over it; None if they cannot be read."""
    try:
        flat = [_as_real(each.detach()).reshape(-1) for each in values_of(tensor)]
    except READ_ERRORS:
        return None
    steps = [max(1, each.numel() // _MOST_VALUES) for each in flat]
    return torch.cat(
        [each[::step].to("cpu", torch.float64) for each, step in zip(flat, steps, strict=True)]
    )


def _as_real(values: Tensor) -> Tensor:
    return torch.view_as_real(values) if values.is_complex() else values


def are_parallel(move: Tensor, gradient: Tensor) -> bool:
    """Tell whether a move goes along a gradient, or against it, as steps of optimizers do.

    Either as a whole, or by the signs of the values, as the first step of Adam does.
    """
    if move.shape != gradient.shape:
        return False
    lengths = float(move.norm() * gradient.norm())
    if not 0 < lengths < float("inf"):
        return False
    moved = (move != 0) & (gradient != 0)
    agree = float((move.sign() == gradient.sign())[moved].double().mean()) if moved.any() else 0.5
    cosine = float(move @ gradient) / lengths
    return abs(cosine) >= _MOSTLY or abs(2 * agree - 1) >= _MOSTLY


@dataclass(slots=True)
class HandStep:
    """Whether a parameter moves along its gradient outside of any optimizer's step.

    Args:
        values: some of its values after the last backward pass.
        gradient: the same values of its gradient.
        trained: whether it moved along its gradient between two backward passes.
    """

    values: Tensor | None = None
    gradient: Tensor | None = None
    trained: bool = False

    def note(self, parameter: Tensor, gradient: Tensor | None) -> None:
        """Note a parameter's values, and its gradient after a backward pass."""
        values = sample_of(parameter)
        old, along = self.values, self.gradient
        if old is not None and along is not None and values is not None:
            self.trained |= old.shape == values.shape and are_parallel(values - old, along)
        self.values = values
        self.gradient = None if gradient is None else sample_of(gradient)
