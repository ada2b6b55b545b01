"""What differs between ranks gets the cause that the names, the counts and the values show."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from pytest_bninvariants.invariants.in_sync.across_ranks.rank_tensor import (
    ComparedTensor,
    RankTensor,
)
from pytest_bninvariants.invariants.in_sync.across_ranks.rules import causes_of
from pytest_bninvariants.selection.walk import Kind
from pytest_bninvariants.torch_internals.sharding import Shard
from pytest_bninvariants.verdict import Cause

INITIAL = {"running_mean": 0.0, "running_var": 1.0}


def told(
    name: str,
    mean: float,
    kind: Kind = "buffer",
    dtype: torch.dtype = torch.float32,
    shard: Shard = (),
) -> RankTensor:
    layer, _, end = name.rpartition(".")
    return RankTensor(
        kind=kind,
        layer=layer,
        dtype=dtype,
        shape=(2,),
        shard=shard,
        digest=str(mean),
        mean=mean,
        is_initial=INITIAL.get(end) == mean,
    )


def on_ranks(name: str, *means: float | None, kind: Kind = "buffer") -> ComparedTensor:
    tensors = [None if mean is None else told(name, mean, kind) for mean in means]
    return ComparedTensor(name, range(len(means)), tensors)


def layer(
    mean: Sequence[float], var: Sequence[float], count: Sequence[float], name: str = "bn."
) -> list[ComparedTensor]:
    """Return the state of a BN layer on several ranks."""
    return [
        on_ranks(f"{name}running_mean", *mean),
        on_ranks(f"{name}running_var", *var),
        on_ranks(f"{name}num_batches_tracked", *count),
    ]


def weight(*means: float | None) -> ComparedTensor:
    return on_ranks("head.weight", *means, kind="parameter")


def only(compared: Sequence[ComparedTensor]) -> Cause:
    (cause,) = causes_of(compared)
    return cause


def names(compared: Sequence[ComparedTensor]) -> list[str]:
    return [cause.name for cause in causes_of(compared)]


OWN = layer([0.5, 0.6], [2.0, 3.0], [1, 1])


@pytest.mark.parametrize("prefix", ["bn.", ""])
def test_statistics_that_were_counted_together_are_each_ranks_own(prefix: str) -> None:
    cause = only(layer([0.5, 0.6], [2.0, 3.0], [1, 1], prefix))
    assert cause.name == "per-rank-statistics"
    assert cause.tensors == (f"{prefix}running_mean", f"{prefix}running_var")
    assert cause.layers == (prefix.rstrip("."),)
    assert "counted 1 batch on each rank" in cause.why


def test_layers_that_counted_other_batches_have_a_cause_each() -> None:
    several = [*layer([0.5, 0.6], [2.0, 3.0], [2, 2]), *layer([5, 6], [7, 8], [4, 4], "neck.")]
    causes = causes_of(several)
    assert [cause.name for cause in causes] == ["per-rank-statistics"] * 2
    assert ["counted 2 batches" in causes[0].why, "counted 4 batches" in causes[1].why] == [
        True
    ] * 2


def test_one_statistic_alone_or_without_a_count_is_not_explained() -> None:
    assert names(layer([0.5, 0.6], [2.0, 2.0], [1, 1])) == []
    assert names(layer([0.5, 0.6], [2.0, 3.0], [0, 0])) == []
    assert names(OWN[:2]) == []
    assert names(OWN[:1]) == []


def test_unequal_counts_are_told_by_rank() -> None:
    cause = only(layer([0.5, 0.6], [2.0, 3.0], [1, 2]))
    assert cause.name == "uneven-batches"
    assert cause.why == "bn counted unequal numbers of batches: 1 on rank 0, 2 on rank 1"
    assert cause.tensors == ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")


def test_a_layer_that_is_new_on_some_ranks_was_filled_on_the_others() -> None:
    cause = only(layer([0.0, 0.6, 0.0], [1.0, 3.0, 1.0], [0, 4, 0]))
    assert cause.name == "new-on-a-rank"
    assert cause.why == (
        "the statistics of bn are those of a new layer on ranks 0 and 2, and hold data on rank 1: "
        "that rank alone loaded a checkpoint or trained"
    )
    assert cause.fix.endswith("torch.distributed.broadcast(t.data, 1)")
    both = only(layer([0.0, 0.6, 0.6], [1.0, 3.0, 3.0], [0, 4, 4]))
    assert "hold data on ranks 1 and 2: those ranks alone" in both.why


def test_a_layer_of_which_one_statistic_alone_is_initial_is_not_new() -> None:
    assert names(layer([0.0, 0.6], [2.0, 3.0], [1, 1])) == ["per-rank-statistics"]
    assert names(layer([0.0, 0.6], [2.0, 1.0], [1, 1])) == ["per-rank-statistics"]


def test_a_name_that_ranks_lack_is_told_of_each_group_of_ranks() -> None:
    causes = causes_of([weight(1.0, None, 1.0), on_ranks("x", None, None, 1.0), weight(None, 1, 1)])
    assert [cause.name for cause in causes] == ["missing-on-a-rank"] * 3
    assert [cause.why.partition(" has no ")[0] for cause in causes] == [
        "the model of rank 1",
        "the model of ranks 0 and 1",
        "the model of rank 0",
    ]
    assert causes[0].why.endswith("has no head.weight")


def test_parameters_that_differ_before_any_batch_started_apart() -> None:
    untrained = layer([0.0, 0.0], [1.0, 1.0], [0, 0])
    cause = only([*untrained, weight(1.0, 2.0)])
    assert (cause.name, cause.layers) == ("different-start", ("head",))
    assert cause.fix.endswith("torch.distributed.broadcast(t.data, 0)")


@pytest.mark.parametrize("counts", [(3, 3), (0, 3)])
def test_parameters_that_differ_after_a_batch_were_trained_apart(counts: tuple[int, int]) -> None:
    trained = on_ranks("bn.num_batches_tracked", *counts)
    assert "trained-apart" in names([trained, weight(1.0, 2.0)])
    assert "different-start" not in names([trained, weight(1.0, 2.0)])


def test_parameters_of_a_model_that_counts_nothing_are_not_explained() -> None:
    assert names([weight(1.0, 2.0)]) == []


def test_parameters_of_other_models_dtypes_or_shards_are_not_explained() -> None:
    untrained = layer([0.0, 0.0], [1.0, 1.0], [0, 0])
    assert names([*untrained, weight(1.0, 2.0), on_ranks("x", 1.0, None)]) == ["missing-on-a-rank"]
    one = told("head.weight", 1.0, "parameter")
    for other in (
        told("head.weight", 2.0, "parameter", torch.float64),
        told("head.weight", 2.0, "buffer"),
    ):
        assert names([*untrained, ComparedTensor("head.weight", [0, 1], [other, one])]) == []
    shards = [told("head.weight", n, "parameter", shard=(("s", 0),)) for n in (1.0, 2.0)]
    assert names([*untrained, ComparedTensor("head.weight", [0, 1], shards)]) == []


def test_layers_that_were_counted_alike_share_a_cause() -> None:
    both = [*OWN, *layer([5, 6], [7, 8], [1, 1], "neck.")]
    assert only(both).layers == ("bn", "neck")
    assert only(both).why.startswith("bn and neck counted 1 batch on each rank")
