"""A batch is cut into shards, and a model is run in one process, without an exchange."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError
from pytest_bninvariants.evaluation.gradient_pass import PassGradients
from pytest_bninvariants.invariants.rank_invariant.shard_pass import (
    ShardedBatch,
    buffer_distance,
    largest,
    run_in_one_process,
    start_digests,
)

BATCH = torch.arange(14.0).reshape(7, 2)


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_shards_are_consecutive_and_cover_the_batch() -> None:
    shards = [ShardedBatch.split(BATCH, 3, position) for position in range(3)]
    assert {each.sizes for each in shards} == {(2, 2, 3)}
    assert [each.rows for each in shards] == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert all(torch.equal(each.shard, BATCH[each.rows]) for each in shards)
    assert shards[1].part.name == "shard 2 of 3"
    assert torch.equal(shards[1].part.batch, BATCH[2:4])


def test_the_tensors_of_a_nest_are_all_found() -> None:
    batch = ShardedBatch.split(({"x": BATCH}, [BATCH + 1, "text"]), 2, 0)
    assert [each.sum().item() for each in batch.tensors] == [91.0, 105.0]


def test_one_process_runs_the_whole_batch_and_the_shard_alone(model: nn.Sequential) -> None:
    batch = ShardedBatch.split(BATCH, 2, 1)
    one = run_in_one_process(model, batch, squares)
    wide = model.double()
    assert one.whole.loss == pytest.approx(squares(wide, BATCH.double()).item())
    assert one.own.loss == pytest.approx(squares(wide, BATCH[3:].double()).item())
    assert one.whole.sums.keys() == one.gradient_bounds.keys()
    assert one.buffer_bounds.keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(0 < bound < 1e-6 for bound in one.gradient_bounds.values())
    assert all(0 < bound < 1e-6 for bound in one.buffer_bounds.values())


def test_random_numbers_are_refused(model: nn.Sequential) -> None:
    model.append(nn.Dropout())
    with pytest.raises(GateError, match=r"each rank would draw .* in training mode: 2 \(Dropout\)"):
        run_in_one_process(model, ShardedBatch.split(BATCH, 2, 0), squares)


def test_one_gradient_that_differs_between_passes_is_refused(model: nn.Sequential) -> None:
    def moody(model: nn.Module, batch: Tensor) -> Tensor:
        noise = int.from_bytes(os.urandom(4), "big")
        return squares(model, batch) + noise * model[0].bias.sum()  # type: ignore[index, union-attr]

    with pytest.raises(GateError, match="two passes over the same batch have different gradients"):
        run_in_one_process(model, ShardedBatch.split(BATCH, 2, 0), moody)


def with_buffer(value: Tensor) -> PassGradients:
    return PassGradients(
        sums={}, sizes={}, loss=0.0, normalised={}, buffers={"x": value}, unreached=()
    )


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        (torch.tensor([1.0, -5.0]), torch.tensor([2.0, -2.0]), 3.0),
        (torch.tensor([2**24 + 1]), torch.tensor([2**24]), 1.0),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1.0),
        (torch.tensor([3j]), torch.tensor([-1j]), 4.0),
        (torch.ones(0), torch.ones(0), 0.0),
    ],
)
def test_the_distance_of_buffers_of_any_dtype(one: Tensor, other: Tensor, distance: float) -> None:
    assert buffer_distance(with_buffer(one), with_buffer(other), "x") == distance


def test_the_largest_magnitude_counts_whatever_its_sign() -> None:
    assert largest(torch.tensor([1.0, -3.0])) == 3.0
    assert largest(torch.tensor([3 + 4j])) == 5.0


def test_digests_tell_a_batch_a_model_and_its_modes_apart(model: nn.Sequential) -> None:
    batch = ShardedBatch.split(BATCH, 2, 0)
    start = start_digests(model, batch)
    assert start_digests(model, ShardedBatch.split(BATCH.clone(), 2, 1)) == start
    other = start_digests(model, ShardedBatch.split(BATCH + 1, 2, 0))
    assert (other[0] != start[0], other[1:]) == (True, start[1:])
    model[1].eval()
    assert start_digests(model, batch)[2] != start[2]
    model[1].running_mean += 1
    assert start_digests(model, batch)[1] != start[1]
