"""Gradients are judged by their distance in bounds: just within holds, just beyond breaks."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from pytest_bninvariants import Verdict
from pytest_bninvariants.evaluation.gradient_pass import PassGradients
from pytest_bninvariants.evaluation.rounding_bounds import rounding_bounds
from pytest_bninvariants.invariants.accumulates.check import _judge
from pytest_bninvariants.invariants.accumulates.gradient_comparison import (
    GradientComparison,
    compare_gradients,
)

U32, FINER = 2.0**-24, 2.0**-29


def gradients(values: Mapping[str, float], normalised: Mapping[str, bool]) -> PassGradients:
    return PassGradients(
        sums={name: torch.tensor([value, 0.0]).double() for name, value in values.items()},
        sizes=dict(values),
        loss=1.0,
        normalised=dict(normalised),
        buffers={},
        unreached=(),
    )


def judged(normalised: Mapping[str, bool] | None = None, **excesses: float) -> Verdict:
    """Return the verdict on gradients that are so many bounds apart."""
    comparison = GradientComparison(
        whole=gradients(dict.fromkeys(excesses, 0.0), {}),
        parts=gradients(excesses, normalised or {}),
        bounds=dict.fromkeys(excesses, 1.0),
    )
    return _judge(nn.Linear(1, 1), 2, 7, comparison)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gradient_is_judged_by_its_distance_in_bounds(sign: int) -> None:
    assert judged(a=sign * 0.99, b=0.5).holds
    assert judged(a=sign * 1.01, b=0.5).changed_tensors == ("a",)


def test_the_least_of_the_differences_that_are_too_large_is_told() -> None:
    verdict = judged(a=300.0, b=40.0, c=0.9)
    assert verdict.changed_tensors == ("a", "b")
    assert verdict.notes[-1] == (
        "each of these differences is at least 4e+01 times what rounding explains"
    )


def test_the_causes_are_those_of_the_micro_batches() -> None:
    causes = judged({"bn": True, "other": False}, a=2.0).causes
    assert [(cause.name, cause.layers) for cause in causes] == [
        ("training-mode", ("bn",)),
        ("no-stored-statistics", ("other",)),
    ]
    assert [cause.name for cause in judged(a=2.0).causes] == ["not-a-mean"]


def test_a_bound_is_256_times_the_error_in_float32_made_finer() -> None:
    bounds = rounding_bounds({"a": 1e-3}, {"a": 1.0})
    assert bounds == {"a": 256 * FINER * 1e-3}


def test_the_worst_relative_error_of_any_value_counts_for_all() -> None:
    bounds = rounding_bounds({"a": 1e-3, "b": 1e-9}, {"a": 1.0, "b": 10.0})
    assert bounds["b"] == pytest.approx(256 * FINER * 1e-2)


def test_a_value_that_has_no_digit_right_says_nothing_of_the_others() -> None:
    bounds = rounding_bounds({"a": 0.2, "b": 1e-9}, {"a": 1.0, "b": 10.0})
    assert bounds["b"] == pytest.approx(256 * FINER * U32 * 10)


def test_the_largest_value_stands_in_for_the_size_of_one_that_is_0() -> None:
    bounds = rounding_bounds({"zero": 0.0, "large": 0.0}, {"zero": 0.0, "large": 8.0})
    assert bounds["zero"] == bounds["large"] == 256 * FINER * U32 * 8


def test_a_gradient_that_cancels_over_micro_batches_has_the_size_of_its_parts() -> None:
    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).mean()

    batch = torch.tensor([[1000.0], [-999.0]])  # the parts are 500 and -499.5, the whole is 0.5
    bounds = compare_gradients(nn.Linear(1, 1), batch, 2, loss, len).bounds
    assert bounds["weight"] == 256 * FINER * U32 * 999.5


@pytest.mark.parametrize(("others", "broke"), [({}, "does not"), ({"b": 0.5}, "do not")])
def test_one_gradient_does_not_add_up_and_of_two_some_do_not(
    others: dict[str, float], broke: str
) -> None:
    assert judged(None, a=2.0, **others).broke == f"{broke} add up"
