"""What an optimizer holds, and which gradients and moments it steps with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import FrameType
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pytest_bninvariants.frames import callers, place_of
from pytest_bninvariants.snapshot.host_copies import read_flags
from pytest_bninvariants.snapshot.tensor_bytes import values_of
from pytest_bninvariants.verdict import Place

Gradient = Literal["nonzero", "zero", "none"]
_MACHINERY = re.compile(r"torch\.(optim|_dynamo)\b|pytest_bninvariants\b")


class OuterSteps:
    """Count the steps of optimizers, but no step inside another's, as that which SAM wraps."""

    def __init__(self) -> None:
        self.count = 0
        self._running: set[FrameType] = set()

    def begins(self, frame: FrameType | None) -> bool:
        """Tell whether the step that torch is about to run in this frame is inside no other."""
        if frame is None or any(caller in self._running for caller in callers(frame)):
            return False
        self._running.add(frame)
        return True

    def ended(self, frame: FrameType | None) -> None:
        """Count a step that began; one that raises is none."""
        assert frame is not None
        self._running.discard(frame)
        self.count += 1


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the ids of the parameters in an optimizer's groups."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def has_gradients(optimizer: Optimizer) -> bool:
    """Tell whether any of its parameters has a gradient."""
    return any(
        each.grad is not None for group in optimizer.param_groups for each in group["params"]
    )


def gradients_of(tensors: Sequence[Tensor]) -> list[Gradient]:
    """Tell whether tensors have a gradient, and whether that is all zeros."""
    gradients: list[Gradient] = ["none" if tensor.grad is None else "zero" for tensor in tensors]
    numbered = [
        (number, values.any())
        for number, tensor in enumerate(tensors)
        if tensor.grad is not None
        for values in values_of(tensor.grad)
    ]
    answers = read_flags([flag for _, flag in numbered])
    for (number, _), is_nonzero in zip(numbered, answers, strict=True):
        if is_nonzero:
            gradients[number] = "nonzero"
    return gradients


def gradient_of(tensor: Tensor) -> Gradient:
    """Tell whether a tensor has a gradient, and whether that is all zeros."""
    return gradients_of([tensor])[0]


def have_moments(optimizer: Optimizer, tensors: Sequence[Tensor]) -> list[bool]:
    """Tell of tensors whether an optimizer, or one that it wraps, has state that may move them.

    Momentum is such state: it moves a tensor whose gradient is zero.
    """
    numbered = [
        (number, value)
        for number, tensor in enumerate(tensors)
        for value in _moments_of(optimizer, tensor)
    ]
    on_device = [
        (number, part)
        for number, value in numbered
        if isinstance(value, Tensor)
        for part in values_of(value)
    ]
    answers = read_flags([part.any() for _, part in on_device])
    having = {number for (number, _), answer in zip(on_device, answers, strict=True) if answer}
    having |= {number for number, value in numbered if isinstance(value, list) and value}
    return [number in having for number in range(len(tensors))]


def _moments_of(optimizer: Optimizer, tensor: Tensor) -> list[Tensor | list[object]]:
    """Return the state that may move a tensor; LBFGS keeps lists."""
    found: list[Tensor | list[object]] = []
    # SAM and Lookahead keep the optimizer that they wrap as an attribute.
    wrapped = [inner for inner in vars(optimizer).values() if isinstance(inner, Optimizer)]
    for each in (optimizer, *wrapped):
        states = [each.state.get(tensor, {})]
        if isinstance(each, torch.optim.LBFGS):  # it keeps one state for all parameters
            states = list(each.state.values())
        values = [v for state in states for name, v in state.items() if name != "step"]
        found += [value for value in values if isinstance(value, Tensor | list)]
    return found


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
