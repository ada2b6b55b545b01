"""Describe how a tensor of an average differs from what it must be."""

from __future__ import annotations

import torch

from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.snapshot.value_difference import arrow
from pytest_bninvariants.verdict import Change


def change_of(average: AverageTensor) -> Change:
    """Return the change of a tensor that is not what it must be."""
    excess = average.excess(average.now)
    worst = int(excess.flatten().argmax())
    at = [
        int(i) for i in torch.unravel_index(torch.tensor(worst, device="cpu"), excess.shape or (1,))
    ]
    got, expected, bound = (
        values.flatten()[worst].item() for values in (average.now, average.expected, average.bound)
    )
    if average.may_be_copied and float(expected).is_integer():
        got, expected = int(got), int(expected)
    got_text, expected_text = arrow(got, expected).split(" -> ")
    count = f"{int((excess > 1).sum())} of {excess.numel()} values, " if excess.dim() else ""
    text = (
        f"{count}{got_text}{f' at {at}' if excess.dim() else ''}, expected {expected_text}"
        f"{f' within {bound:.1e}' if bound else ''}{_what_fits(average)}"
    )
    watched = average.watched
    return Change(name=watched.name, layer=watched.layer, kind="values", text=text)


def _what_fits(average: AverageTensor) -> str:
    if average.is_left_behind:
        return ": not updated"
    if average.is_copy:
        return ": a copy of the model's"
    if average.is_swapped:
        return ": as if decay weighed the new value"
    return ""
