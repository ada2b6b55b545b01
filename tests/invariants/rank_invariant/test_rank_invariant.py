"""Ranks on shards of a batch train as one process on all of it, or the verdict says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import GateError, rank_invariant
from tests.ranks.runs import run_checks
from tests.ranks.warm_python import WarmPython

Told = list[dict[str, dict[str, Any]]]
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def told(request: pytest.FixtureRequest, warm_python: WarmPython) -> Told:
    return run_checks(warm_python, "tests.invariants.rank_invariant.training_ranks", request.param)


def of(told: Told, name: str) -> dict[str, Any]:
    """Return what every rank was told, which is the same."""
    first = told[0][name]
    if first["kind"] == "absent":
        pytest.skip("this torch has no torch.distributed.fsdp.fully_shard")
    assert all(rank[name] == first for rank in told), [rank[name] for rank in told]
    return first


@pytest.mark.parametrize(
    "name",
    [
        "frozen BN",
        "all in eval",
        "static graph",
        "a sum, added up",
        "dropout in eval",
        "BN over ranks",
        "unused, found",
        "fully_shard",
    ],
)
def test_ranks_that_train_as_one_process_hold(told: Told, name: str) -> None:
    said = of(told, name)
    assert said["kind"] == "held", said["text"]
    assert said["as it was"]


@pytest.mark.parametrize(
    ("name", "causes", "words"),
    [
        ("BN in training", ["per-rank-statistics"], "1 is the first layer whose outputs differ"),
        ("fully_shard, in training", ["per-rank-statistics"], "convert_sync_batchnorm(model)"),
        ("BN without statistics", ["no-stored-statistics"], "1 was in eval, and normalised"),
        ("a layer that mixes", ["mixes-samples"], "1 gives other outputs for a sample"),
        ("a sum", ["sum-of-samples"], 'reduction="mean"'),
        ("a mean, added up", ["summed"], "divide by torch.distributed.get_world_size()"),
        ("unequal shards", ["unequal-shards"], "a sample in a small shard counts more"),
        ("ignored targets", ["not-a-mean"], "the loss is not a mean over samples"),
        ("no_sync", ["not-exchanged"], "leave no_sync() before the last backward"),
        ("unused", ["unused-parameters"], "wrap with find_unused_parameters=True"),
        ("compressed", ["lossy-exchange"], "a communication hook compresses"),
    ],
)
def test_what_makes_the_difference_is_named(
    told: Told, name: str, causes: list[str], words: str
) -> None:
    said = of(told, name)
    assert said["kind"] == "broken", said["text"]
    assert said["causes"] == causes
    assert words in said["text"]
    assert said["as it was"]


def test_two_things_that_are_wrong_are_both_named(told: Told) -> None:
    assert of(told, "not wrapped")["causes"] == ["not-exchanged", "per-rank-statistics"]


def test_statistics_are_compared_and_not_only_gradients(told: Told) -> None:
    assert "1.running_var max |d|" in of(told, "BN in training")["text"]
    assert "running" not in of(told, "a sum")["text"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dropout", "put random modules in eval; in training mode: 1 (Dropout)"),
        ("other batches", "got another batch than rank 0"),
        ("other models", "got another model than rank 0"),
        ("other modes", "got a model in other modes than rank 0"),
        ("a shard that raises", "rank 1 cannot judge: the loss of shard 2"),
        ("too few samples", "a batch of 1 cannot be cut into shards"),
        ("wrapped", "pass the model as it is before that, and how you wrap it"),
        ("sharded already", "pass the model as it is before that, and how you wrap it"),
        ("flat parameters", "wrap with DistributedDataParallel or fully_shard"),
    ],
)
def test_what_cannot_be_judged_is_refused_on_every_rank(told: Told, name: str, words: str) -> None:
    if name not in told[0]:
        pytest.skip("this torch has no torch.distributed.fsdp.fully_shard")
    said = of(told, name)
    assert said["kind"] == "gate", said["text"]
    assert words in said["text"]


def test_a_group_of_ranks_is_judged_by_itself(told: Told) -> None:
    kinds = [rank["a group"]["kind"] for rank in told]
    assert kinds == ["held", "held", "gate"][: len(told)]


def test_without_ranks_there_is_nothing_to_judge() -> None:
    with pytest.raises(GateError, match="there is none: call it on each of two or more ranks"):
        rank_invariant(nn.Linear(2, 1), torch.ones(4, 2), loss=lambda model, batch: model(batch))


@pytest.mark.parametrize("name", ["loss", "wrap"])
def test_what_is_no_function_is_refused(name: str) -> None:
    options: dict[str, Any] = {"loss": abs, name: 3}
    with pytest.raises(GateError, match=rf"rank_invariant\({name}=...\) takes a function; got 3"):
        rank_invariant(nn.Linear(2, 1), torch.ones(4, 2), **options)
