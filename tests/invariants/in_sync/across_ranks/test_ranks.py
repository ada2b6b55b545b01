"""Without a second model, in_sync compares the ranks of a distributed run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ranks.runs import run_checks
from tests.ranks.warm_python import WarmPython

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
Told = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def told(
    request: pytest.FixtureRequest, warm_python: WarmPython
) -> list[dict[str, dict[str, Any]]]:
    return run_checks(
        warm_python, "tests.invariants.in_sync.across_ranks.syncing_ranks", request.param
    )


def of(told: list[dict[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    """Return what all ranks were told, which is the same but for the note that names the rank."""
    texts = {rank[name]["text"].partition(" note this is rank")[0] for rank in told}
    assert len(texts) == 1, texts
    return {**told[0][name], "text": texts.pop()}


@pytest.mark.parametrize("name", ["built", "wrapped", "own statistics, mended"])
def test_equal_ranks_hold(told: Any, name: str) -> None:
    assert of(told, name)["kind"] == "held"


@pytest.mark.parametrize(
    ("name", "cause", "words"),
    [
        ("other seeds", "different-start", "mean -0.0335276 on rank 0, mean 0.0314635 on rank 1"),
        ("own statistics", "per-rank-statistics", "convert_sync_batchnorm(model)"),
        ("uneven", "uneven-batches", "counted unequal numbers of batches: 1 on rank 0, 2 on rank"),
        ("loaded on one", "new-on-a-rank", "hold data on rank 1"),
        ("stepped apart", "trained-apart", "leave no_sync() before the last micro-batch"),
        ("other names", "missing-on-a-rank", "the model of rank 0 has no 1.weight, 1.bias"),
    ],
)
def test_ranks_that_differ_are_told_with_the_cause(
    told: Any, name: str, cause: str, words: str
) -> None:
    said = of(told, name)
    assert said["kind"] == "broken"
    assert said["causes"] == [cause]
    assert words in said["text"]


def test_the_rank_that_loaded_alone_is_the_one_whose_state_is_sent(told: Any) -> None:
    assert "torch.distributed.broadcast(t.data, 1)" in of(told, "loaded on one")["text"]


def test_the_ranks_and_the_distance_are_named(told: Any) -> None:
    said = of(told, "written on one")["text"]
    others = "rank 0" if len(told) == 2 else "ranks 0 and 2"
    assert f"on {others}, mean 7 on rank 1; 4 of 4 values, max |d| 7." in said


def test_one_written_statistic_is_not_taken_for_those_of_own_batches(told: Any) -> None:
    assert of(told, "written on one")["causes"] == []


def test_other_dtypes_are_told_without_a_guess(told: Any) -> None:
    said = of(told, "other dtypes")
    assert said["causes"] == []
    assert "float64 (4, 3) on rank 1" in said["text"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no buffers on one", "cannot judge: the model has no buffer"),
        ("a name on one", "cannot judge: '1' matches nothing in the model"),
        ("meta on one", "rank 1 cannot judge: cannot compare running_mean"),
        ("an exception on one", "rank 1 cannot judge: OSError: the disk is gone"),
    ],
)
def test_where_one_rank_cannot_judge_none_does(told: Any, name: str, words: str) -> None:
    said = of(told, name)
    assert said["kind"] == "gate"
    assert words in said["text"]
    assert said["text"].endswith("so no rank does")


def test_where_the_step_raises_on_one_rank_the_others_are_told(told: Any) -> None:
    first, second, *rest = [rank["a step that raises on one"] for rank in told]
    assert second["kind"] == "held"  # its own error is raised by the step
    for said in (first, *rest):
        assert said["kind"] == "gate"
        assert "rank 1 cannot judge: its step raised RuntimeError: no data left" in said["text"]


def test_nobody_waits_for_a_rank_that_cannot_judge(told: Any) -> None:
    assert all(rank["no buffers on one"]["seconds"] < 15 for rank in told)


def test_what_no_rank_can_judge_is_told_once(told: Any) -> None:
    assert of(told, "no buffers")["text"] == (
        "in_sync(): the model has no buffer: there is nothing to watch"
    )


def test_what_is_no_group_is_refused(told: Any) -> None:
    assert "group= takes a process group" in of(told, "no group")["text"]


def test_a_group_of_ranks_is_compared_by_itself(told: Any) -> None:
    kinds = [rank["a group"]["kind"] for rank in told]
    assert kinds == (["broken", "broken"] if len(told) == 2 else ["held", "held", "gate"])
    if len(told) == 3:
        assert "rank 2 is not in group=" in told[2]["a group"]["text"]
