"""What a rank was left with is judged by its distance from one process, in bounds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from pytest_bninvariants.evaluation.gradient_pass import PassGradients
from pytest_bninvariants.invariants.rank_invariant.differences import (
    ProcessDifference,
    differences_from,
    worst_of_ranks,
)
from pytest_bninvariants.invariants.rank_invariant.shard_pass import OneProcess
from pytest_bninvariants.verdict import ChangeKind

INF = float("inf")


def gradients(values: Mapping[str, float], buffers: Mapping[str, float]) -> PassGradients:
    return PassGradients(
        sums={name: torch.tensor([value, 0.0]).double() for name, value in values.items()},
        sizes=dict(values),
        loss=1.0,
        normalised={},
        buffers={name: torch.tensor([0.0, value]) for name, value in buffers.items()},
        unreached=(),
    )


def difference(
    distance: float, bound: float = 1.0, name: str = "x", kind: ChangeKind = "values"
) -> ProcessDifference:
    return ProcessDifference(name=name, kind=kind, distance=distance, size=4.0, bound=bound)


@pytest.mark.parametrize(
    ("distance", "bound", "excess"), [(3, 2, 1.5), (0, 2, 0), (0, 0, 0), (1, 0, INF)]
)
def test_an_excess_is_a_distance_in_bounds(distance: float, bound: float, excess: float) -> None:
    assert difference(distance, bound).excess == excess


def test_gradients_and_buffers_are_compared_with_their_own_bounds() -> None:
    whole = gradients({"weight": -8.0}, {"mean": 2.0, "count": 1.0})
    one = OneProcess(
        whole=whole,
        own=whole,
        gradient_bounds={"weight": 0.5},
        buffer_bounds={"mean": 0.25, "count": 0.0},
    )
    found = differences_from(one, gradients({"weight": -7.0}, {"mean": 3.0}))
    assert found == [
        ProcessDifference("weight", "gradient", 1.0, 8.0, 0.5),
        ProcessDifference("mean", "values", 1.0, 2.0, 0.25),
    ]


def test_the_worst_rank_is_told_of_each_tensor() -> None:
    gradient = difference(1.0, name="weight", kind="gradient")
    told = [
        [gradient, difference(2.0), difference(1.0, name="y")],
        [gradient, difference(3.0), difference(0.5, name="y")],
        [gradient, difference(2.5), difference(1.0, name="y")],
    ]
    worst = worst_of_ranks([4, 5, 6], told)
    assert worst == [(4, gradient), (5, difference(3.0)), (4, difference(1.0, name="y"))]


def test_a_gradient_and_a_buffer_of_one_name_are_two_things() -> None:
    gradient, buffer = difference(1.0, kind="gradient"), difference(2.0)
    assert worst_of_ranks([0], [[gradient, buffer]]) == [(0, gradient), (0, buffer)]


def test_a_change_says_how_far_it_is_off_and_on_which_rank() -> None:
    change = difference(1.0, kind="gradient").as_change(3)
    assert (change.name, change.layer) == ("gradient of x", "gradient of x")
    assert change.text == "max |d| 1.0e+00, 0.25 of its largest value, on rank 3"
    from_0 = difference(1.0)._replace(size=0.0).as_change(0)
    assert (from_0.name, from_0.text) == ("x", "max |d| 1.0e+00, from 0, on rank 0")
