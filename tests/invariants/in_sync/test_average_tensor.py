"""How far an average may be from what its decay says: an error just within, and one just beyond."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed

U = UNIT[torch.float32]


def watched(values: Tensor) -> WatchedTensor:
    return WatchedTensor("x", "", "buffer", values)


def kept(values: Tensor) -> KeptTensor:
    with undisturbed():
        return take_snapshot({"x": watched(values)}, exact=True)["x"]


def averaged(
    was: float,
    now: float,
    before: float,
    model: float,
    decay: float,
    dtype: torch.dtype = torch.float32,
) -> AverageTensor:
    """Return an average of one value that a step moved, and its model's value before and after."""
    one, other, third, fourth = (
        torch.tensor([value], dtype=torch.float64).to(dtype) for value in (was, now, before, model)
    )
    return AverageTensor.after_step(kept(one), watched(other), kept(third), watched(fourth), decay)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("units", "holds"), [(0, True), (8, True), (12, False)])
def test_an_average_may_be_four_roundings_off(sign: int, units: int, holds: bool) -> None:
    # the sizes that round add up to 2.5: half of 1, half of 2, and their difference
    assert averaged(1.0, 1.5 + sign * units * U, 2.0, 2.0, 0.5).holds == holds


@pytest.mark.parametrize(
    ("now", "holds"), [(1, True), (2, True), (5, True), (0, False), (3, False), (4, False)]
)
def test_an_average_of_integers_is_a_neighbour_or_a_copy(now: int, holds: bool) -> None:
    assert averaged(0, now, 5, 5, 0.75, torch.int64).holds == holds


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize(("share", "fits"), [(0.0, True), (0.9, True), (1.1, False)])
def test_a_mixture_may_be_four_roundings_off_for_each_update(
    updates: int, share: float, fits: bool
) -> None:
    # a quarter of 1, a quarter of 2, half of 4, and the distances of 2 and 4 from 1
    size, expected = 0.25 + 0.5 + 2 + 1 + 3, 2.75
    off = 4 * updates * U * size * share
    average = averaged(1.0, expected + off, 2.0, 4.0, 0.25)
    assert average.is_mixture(0.25, 0.25, updates) == fits
