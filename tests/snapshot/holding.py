"""A module that holds one tensor, and what a guard says of what happens to it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, InvariantHazard, frozen


class Holder(nn.Module):
    """Hold one tensor as a buffer; running it does nothing, but is something that ran."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", tensor)

    def forward(self) -> None:
        pass


def told(tensor: Tensor, write: Callable[[Holder], object]) -> str | None:
    """Return how a guard puts what happens to a tensor; None where it finds that nothing did."""
    holder = Holder(tensor)
    guard = frozen(holder)
    try:
        with warnings.catch_warnings(), guard:
            warnings.simplefilter("ignore", InvariantHazard)  # an equal tensor in its place is one
            holder()
            write(holder)
    except FrozenStateChanged as failure:
        (change,) = failure.verdict.changes
        assert change.name == "x"
        return change.text
    assert guard.verdict is not None
    assert guard.verdict.holds
    return None


def replaced_by(new: Tensor) -> Callable[[Holder], object]:
    def write(holder: Holder) -> None:
        holder._buffers["x"] = new

    return write


def of_bytes(raw: Tensor, dtype: torch.dtype) -> Tensor:
    return raw.view(dtype)


def quantized(scale: float = 0.5, zero: int = 0, first: float = 1.0) -> Tensor:
    return torch.quantize_per_tensor(torch.tensor([first, 2.0]), scale, zero, torch.qint8)
