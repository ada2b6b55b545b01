"""Guards judge tensor parallelism, checkpoints and summoned parameters, or say what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ranks.runs import run_checks
from tests.ranks.warm_python import WarmPython

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
Told = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def told(request: pytest.FixtureRequest, warm_python: WarmPython) -> Told:
    return run_checks(warm_python, "tests.invariants.sharded.parallel_ranks", request.param)


@pytest.fixture(scope="module")
def four(warm_python: WarmPython) -> Told:
    return run_checks(warm_python, "tests.invariants.sharded.parallel_ranks", 4)


def of(told: Told, name: str) -> list[dict[str, Any]]:
    """Return what each rank was told."""
    if name not in told[0]:
        pytest.skip("this torch has no torch.distributed.fsdp.fully_shard")
    return [rank[name] for rank in told]


@pytest.mark.parametrize(
    "name",
    [
        *("no_sync, frozen", "no_sync, trains", "no_sync, bn_updates"),
        *("ZeRO, frozen", "ZeRO, trains"),
        *("checkpointing, DDP, frozen", "checkpointing, DDP, trains"),
        *("checkpointing, fully_shard, frozen", "checkpointing, fully_shard, trains"),
        "buffers not sent",
        *("TP, frozen", "TP, trains", "TP, output", "TP, sharded output", "average"),
        *("DTensor, Replicate", "DTensor, Shard", "DTensor, Partial"),
        *("gathered, trained", "gathered, resharded", "gathered, again", "gathered, output"),
        *("sharded inside, trains", "on one rank"),
        *("summoned, original", "summoned, original, inside"),
        *("summoned, flat", "summoned, flat, inside"),
        *("DCP, DDP", "DCP, fully_shard"),
    ],
)
def test_what_stays_as_it_is_meant_to_holds(told: Told, name: str) -> None:
    for said in of(told, name):
        assert said["kind"] == "held", said["text"]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("checkpointing, DDP, forgotten", "training-mode"),
        ("checkpointing, fully_shard, forgotten", "training-mode"),
        ("TP, moved", "gradient-step"),
        ("TP, momentum", "stale-momentum"),
        ("TP, other output", "gradient-step"),
        ("TP, sharded output moved", "in-place"),
        ("average, other decay", "other-decay"),
        ("DTensor, Replicate, moved", "in-place"),
        ("DTensor, Shard, moved", "in-place"),
        ("DTensor, Partial, moved", "in-place"),
        ("gathered, written", "in-place"),
        ("DCP, DDP, other", "loaded"),
        ("DCP, fully_shard, other", "loaded"),
    ],
)
def test_a_real_change_is_found_with_its_cause(told: Told, name: str, cause: str) -> None:
    for said in of(told, name):
        assert said["kind"] == "broken", said["text"]
        assert said["causes"] == [cause], said["text"]


def test_zero_moves_a_parameter_on_the_rank_that_owns_it_and_sends_it_to_the_others(
    told: Told,
) -> None:
    ranks = of(told, "ZeRO, moved")
    assert {said["kind"] for said in ranks} == {"broken"}
    causes = [cause for said in ranks for cause in said["causes"]]
    assert {"gradient-step"} <= set(causes) <= {"gradient-step", "broadcast"}


@pytest.mark.parametrize("name", ["summoned, original, written", "summoned, flat, written"])
def test_what_is_written_to_summoned_parameters_is_found_where_it_lies(
    told: Told, name: str
) -> None:
    kinds = {said["kind"] for said in of(told, name)}
    assert "broken" in kinds
    assert kinds <= {"broken", "held"}  # another rank's shards may have stayed


def test_the_advice_on_a_broadcast_names_the_option_of_this_torch(told: Told) -> None:
    first, second, *_ = of(told, "buffers sent")
    assert first["kind"] == "held"
    assert second["causes"] == ["broadcast"]
    assert f"wrap it with {first['option']}=False" in second["text"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sharded inside", "became shards inside the guard"),
        ("a part first", "run the model once before the guard"),
        ("part of a flat parameter, frozen", "with use_orig_params=True or fully_shard"),
        ("part of a flat parameter, frozen_bn", "or pass parameters=False to watch the buffers"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_what_to_do(
    told: Told, name: str, words: str
) -> None:
    for said in of(told, name):
        assert said["kind"] == "gate", said["text"]
        assert words in said["text"]


@pytest.mark.parametrize("name", ["in_sync, shards", "in_sync, flat"])
def test_shards_are_not_held_against_each_other(told: Told, name: str) -> None:
    for said in of(told, name):
        assert said["kind"] == "held", said["text"]
        assert "not compared, because each rank holds another part" in said["hazards"][0]


def test_where_all_is_sharded_there_is_nothing_to_compare(told: Told) -> None:
    for said in of(told, "in_sync, only shards"):
        assert said["kind"] == "gate"
        assert "nothing that two ranks hold" in said["text"]


def test_shards_are_compared_where_they_are_replicated(four: Told) -> None:
    assert {said["kind"] for said in of(four, "in_sync, replicas")} == {"held"}
    for said in of(four, "in_sync, replicas differ"):
        assert said["kind"] == "broken"
        assert said["causes"] == []
        assert "on rank 1" in said["text"]
        assert "on rank 3" in said["text"]
