"""What ranks hold under one name is grouped, compared and put into words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pytest_bninvariants.invariants.in_sync.across_ranks.rank_tensor import (
    ComparedTensor,
    RankTensor,
)
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed


def on_a_rank(values: Tensor, name: str = "bn.running_mean", **options: Any) -> RankTensor:
    watched = WatchedTensor(name, name.rpartition(".")[0], "buffer", values)
    with undisturbed():
        kept = take_snapshot({name: watched}, exact=True)[name]
        return RankTensor.from_kept(kept, options.get("shard", ()), is_flat="flat" in options)


def compared(*values: Tensor | RankTensor | None) -> ComparedTensor:
    tensors = [on_a_rank(each) if isinstance(each, Tensor) else each for each in values]
    return ComparedTensor("bn.running_mean", range(4, 4 + len(tensors)), tensors)


ZEROS, ONES, TWOS = torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (torch.tensor([1.0, 2.0]), "mean 1.5"),
        (torch.tensor(3), "3"),
        (torch.tensor(3.25), "3.25"),
        (torch.ones(0, 2), "float32 (0, 2)"),
        (torch.ones(2, dtype=torch.complex64), "complex64 (2,)"),
    ],
)
def test_a_tensor_is_shown_by_its_mean_if_it_has_one(values: Tensor, shown: str) -> None:
    assert on_a_rank(values).shown == shown


def test_a_flat_parameter_is_shown_without_its_shape() -> None:
    assert on_a_rank(ONES, flat=True).spec == "float32"
    assert on_a_rank(ONES).spec == "float32 (2,)"


@pytest.mark.parametrize(
    ("name", "values", "initial"),
    [
        ("bn.running_mean", ZEROS, True),
        ("bn.running_mean", ONES, False),
        ("bn.running_var", ONES, True),
        ("running_var", ZEROS, False),
    ],
)
def test_the_values_of_a_new_layer_are_recognised(name: str, values: Tensor, initial: bool) -> None:
    assert on_a_rank(values, name).is_initial == initial


def test_ranks_with_the_same_bytes_are_together() -> None:
    assert compared(ONES, ZEROS, ONES).classes == [[4, 6], [5]]
    assert compared(ONES, ONES).classes == []
    assert not compared(ONES, ONES).differs
    assert compared(ONES, ZEROS).differs


def test_the_dtype_and_the_shape_count_before_the_bytes() -> None:
    assert compared(ONES, ONES.double(), ZEROS).classes == [[4, 6], [5]]
    assert compared(ONES, ONES.double()).describe({}) == (
        "float32 (2,) on rank 4, float64 (2,) on rank 5"
    )


def shard(values: Tensor, number: int) -> RankTensor:
    return on_a_rank(values, shard=(("shard", number),))


def test_only_ranks_that_hold_the_same_part_are_compared() -> None:
    apart = compared(shard(ONES, 0), shard(ZEROS, 1))
    assert (apart.is_compared, apart.differs) == (False, False)
    agreeing = compared(shard(ONES, 0), shard(ZEROS, 1), shard(ONES, 0))
    assert (agreeing.is_compared, agreeing.differs) == (True, False)
    differing = compared(shard(ONES, 0), shard(ZEROS, 1), shard(ONES, 0), shard(TWOS, 1))
    assert differing.classes == [[5], [7]]


def test_a_name_that_a_rank_lacks_is_told_by_those_that_have_it() -> None:
    missing = compared(None, ONES, None, ONES)
    assert (missing.missing_on, missing.is_compared, missing.differs) == ([4, 6], True, True)
    assert missing.first == on_a_rank(ONES)
    assert missing.describe({}) == "only on ranks 5 and 7"


def test_the_distance_of_the_first_two_values_is_told_if_their_bytes_are_known() -> None:
    contents = {4: as_bytes(ONES), 5: as_bytes(TWOS)}
    said = compared(ONES, TWOS).describe(contents)
    assert (
        said
        == "mean 1 on rank 4, mean 2 on rank 5; 2 of 2 values, max |d| 1.0e+00 at [0]: 1.0 -> 2.0"
    )
    assert compared(ONES, TWOS).describe({4: as_bytes(ONES), 5: b""}) == (
        "mean 1 on rank 4, mean 2 on rank 5"
    )


def test_bytes_that_are_no_whole_tensor_tell_no_distance() -> None:
    halves = {4: as_bytes(ONES)[:4], 5: as_bytes(TWOS)[:4]}
    assert ";" not in compared(ONES, TWOS).describe(halves)
    scalars = compared(torch.tensor(1.0), torch.tensor(2.0))
    assert scalars.describe({4: as_bytes(ONES)[:4], 5: as_bytes(TWOS)[:4]}) == (
        "1 on rank 4, 2 on rank 5"
    )


def as_bytes(values: Tensor) -> bytes:
    return values.numpy().tobytes()


def test_many_values_are_counted() -> None:
    three, four, five = (
        compared(*(torch.full((2,), float(n)) for n in range(count))) for count in (3, 4, 5)
    )
    assert three.describe({}) == "mean 0 on rank 4, mean 1 on rank 5, mean 2 on rank 6"
    assert four.describe({}).endswith("mean 2 on rank 6, and 1 other values on other ranks")
    assert five.describe({}).endswith("mean 2 on rank 6, and 2 other values on other ranks")
