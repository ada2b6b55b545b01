"""A difference between ranks and one process gets the cause that its evidence shows."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_bninvariants.invariants.rank_invariant.rules import RankEvidence, causes_of
from pytest_bninvariants.verdict import Cause


def cause(**evidence: Any) -> Cause:
    (found,) = causes_of([RankEvidence(**evidence)])
    return found


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        ({}, "lossy-exchange"),
        ({"left_is_sum": True}, "summed"),
        ({"left_is_own": True}, "not-exchanged"),
        ({"left_is_own": True, "left_is_sum": True}, "not-exchanged"),
        ({"unreached": ("spare.bias",)}, "unused-parameters"),
        ({"unreached": ("spare.bias",), "left_is_own": True}, "unused-parameters"),
        ({"unreached": ("spare.bias",), "left_is_sum": True}, "summed"),
        ({"in_training": ("bn",), "first_layer": "bn"}, "lossy-exchange"),
    ],
)
def test_an_exchange_is_explained_by_what_it_left(evidence: dict[str, Any], name: str) -> None:
    assert cause(side="exchange", **evidence).name == name


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        ({}, "not-a-mean"),
        ({"left_is_sum": True, "left_is_own": True, "unreached": ("spare",)}, "not-a-mean"),
        ({"whole_is_sum": True}, "sum-of-samples"),
        ({"whole_is_sum": True, "whole_is_weighted": True, "sizes": (3, 2)}, "sum-of-samples"),
        ({"whole_is_weighted": True, "sizes": (3, 2)}, "unequal-shards"),
        ({"whole_is_weighted": True, "sizes": (2, 2)}, "not-a-mean"),
        ({"sizes": (3, 2)}, "not-a-mean"),
        ({"first_layer": "mix", "whole_is_sum": True}, "mixes-samples"),
        ({"in_eval": ("bn",), "first_layer": "bn"}, "no-stored-statistics"),
        ({"in_eval": ("b",), "in_training": ("a",), "first_layer": "b"}, "per-rank-statistics"),
    ],
)
def test_a_computation_is_explained_by_what_its_layers_did(
    evidence: dict[str, Any], name: str
) -> None:
    assert cause(side="computation", **evidence).name == name


def test_each_side_has_its_cause() -> None:
    exchange = RankEvidence(side="exchange", left_is_own=True)
    computation = RankEvidence(side="computation", in_training=("bn",))
    names = [each.name for each in causes_of([computation, exchange])]
    assert names == ["not-exchanged", "per-rank-statistics"]


def test_the_layers_are_those_that_normalised_with_a_shards_statistics() -> None:
    found = cause(side="computation", in_training=("a", "b"), in_eval=("c",))
    assert found.layers == ("a", "b", "c")
    assert found.why == (
        "a and b normalised on each rank with the statistics of that rank's shard, and not with "
        "those of the whole batch"
    )


def test_the_first_layer_that_differs_is_named_if_it_is_one_of_them() -> None:
    first = {"in_training": ("a", "b"), "first_layer": "b"}
    assert cause(side="computation", **first).why.endswith(
        "; b is the first layer whose outputs differ"
    )
    assert "first layer" not in cause(side="computation", **{**first, "first_layer": "mix"}).why


@pytest.mark.parametrize(
    ("names", "was"), [(("a",), "a was in eval"), (("a", "b"), "a and b were")]
)
def test_layers_in_eval_are_counted(names: tuple[str, ...], was: str) -> None:
    assert cause(side="computation", in_eval=names).why.startswith(was)


@pytest.mark.parametrize(("layer", "named"), [("mix", "mix"), ("", "the model")])
def test_what_mixes_samples_is_named(layer: str, named: str) -> None:
    found = cause(side="computation", first_layer=layer)
    assert found.why.startswith(f"{named} gives other outputs")
    assert found.fix.startswith(f"look for what {named} computes")


def test_the_sizes_of_unequal_shards_are_told_once_each() -> None:
    found = cause(side="computation", whole_is_weighted=True, sizes=(4, 3, 4))
    assert found.why.startswith("the shards have 3 and 4 samples")


def test_parameters_without_a_gradient_are_named() -> None:
    found = cause(side="exchange", unreached=("spare.weight", "spare.bias"))
    assert found.why.startswith("the loss gives spare.weight and spare.bias no gradient")
