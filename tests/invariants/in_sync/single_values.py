"""Averages of one value, before and after a step."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.selection.walk import Kind
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed


def watched(values: Tensor, kind: Kind = "buffer") -> WatchedTensor:
    return WatchedTensor("x", "", kind, values)


def kept(values: Tensor, kind: Kind = "buffer") -> KeptTensor:
    with undisturbed():
        return take_snapshot({"x": watched(values, kind)}, exact=True)["x"]


def averaged(
    was: float,
    now: float,
    before: float,
    model: float,
    decay: float | None,
    dtype: torch.dtype = torch.float32,
    kind: Kind = "buffer",
) -> AverageTensor:
    """Return an average of one value that a step moved, and its model's value before and after."""
    one, other, third, fourth = (
        torch.tensor([value], dtype=torch.float64).to(dtype) for value in (was, now, before, model)
    )
    return AverageTensor.after_step(
        kept(one, kind), watched(other, kind), kept(third), watched(fourth), decay
    )
