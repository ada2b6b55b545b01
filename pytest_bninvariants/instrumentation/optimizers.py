"""What an optimizer holds, and which gradients and moments it steps with."""

from __future__ import annotations

import re
from types import FrameType
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pytest_bninvariants.frames import place_of
from pytest_bninvariants.snapshot.tensor_bytes import values_of
from pytest_bninvariants.verdict import Place

Gradient = Literal["nonzero", "zero", "none"]
_MACHINERY = re.compile(r"torch\.(optim|_dynamo)\b|pytest_bninvariants\b")


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the ids of the parameters in an optimizer's groups."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def gradient_of(tensor: Tensor) -> Gradient:
    """Tell whether a tensor has a gradient, and whether that is all zeros."""
    grad = tensor.grad
    if grad is None:
        return "none"
    return "nonzero" if any(bool(values.any()) for values in values_of(grad)) else "zero"


def has_moments(optimizer: Optimizer, tensor: Tensor) -> bool:
    """Tell whether an optimizer, or one that it wraps, has state that may move a tensor.

    Momentum is such state: it moves a tensor whose gradient is zero.
    """
    # SAM and Lookahead keep the optimizer that they wrap as an attribute.
    wrapped = [inner for inner in vars(optimizer).values() if isinstance(inner, Optimizer)]
    for each in (optimizer, *wrapped):
        states = [each.state.get(tensor, {})]
        if isinstance(each, torch.optim.LBFGS):  # it keeps one state for all parameters
            states = list(each.state.values())
        values = [v for state in states for name, v in state.items() if name != "step"]
        if any(_is_moment(value) for value in values):
            return True
    return False


def _is_moment(value: object) -> bool:
    """Tell whether a value of an optimizer's state may move a tensor; LBFGS keeps lists of them."""
    return (
        bool(value.any()) if isinstance(value, Tensor) else isinstance(value, list) and bool(value)
    )


def skips_parameters_without_gradient(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer is known to skip parameters whose gradient is None.

    All of torch's own do, except for LBFGS, which moves all parameters along one direction.
    """
    own = type(optimizer).__module__.startswith("torch.optim")
    return own and not isinstance(optimizer, torch.optim.LBFGS)


def place_of_step(frame: FrameType | None, optimizer: Optimizer) -> Place | None:
    """Find the user's line that called an optimizer's step.

    `torch.optim` wraps `step` to profile it, and its schedulers wrap it again to count calls.
    """
    while frame is not None and _MACHINERY.match(str(frame.f_globals.get("__name__"))):
        frame = frame.f_back
    return place_of(frame, f"{type(optimizer).__name__}.step()")
