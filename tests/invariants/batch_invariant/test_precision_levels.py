"""An output of some samples is compared with that of the whole batch, value by value."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError
from pytest_bninvariants.evaluation.call_arguments import CallArguments
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.invariants.batch_invariant.precision_levels import (
    PrecisionLevel,
    measured_levels,
    tolerated_level,
)
from pytest_bninvariants.invariants.batch_invariant.whole_output import Tensors

WHOLE = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def level(whole: Tensor = WHOLE, bound: float = 0.5) -> PrecisionLevel:
    bounds = torch.full(whole.shape, bound, dtype=torch.float64)
    return PrecisionLevel("float32", nn.Identity(), {"y": whole}, {"y": bounds})


def test_the_worst_value_is_told_with_its_place_in_the_whole_batch() -> None:
    part = torch.tensor([[5.25, 6.0], [1.0, 2.75]])
    error, text = level().compare("y", part, (2, 0))
    assert error == 1.5
    assert text == (
        "a batch of 2 (samples 2, 0) has 2.75 at [0, 1], in the batch of 3 it is 2.0: "
        "7.5e-01 apart in float32, where rounding explains 5.0e-01"
    )


def test_a_value_is_worst_by_its_bound_and_not_by_its_distance() -> None:
    compared = level()
    compared.bounds["y"][0] = 100.0
    error, text = compared.compare("y", WHOLE[:2] + torch.tensor([[9.0, 0.0], [0.0, 1.0]]), (0, 1))
    assert error == 2.0
    assert "at [1, 1]" in text


@pytest.mark.parametrize(("bound", "error"), [(0.0, 0.0), (0.5, 0.0)])
def test_what_is_equal_has_no_error(bound: float, error: float) -> None:
    assert level(bound=bound).compare("y", WHOLE[[1]], (1,))[0] == error


def test_without_a_bound_any_difference_is_too_far() -> None:
    error, _ = level(bound=0.0).compare("y", WHOLE[[1]] + 1e-6, (1,))
    assert error == torch.inf


@pytest.mark.parametrize(
    ("part", "shape"), [(None, "none"), (WHOLE, r"(3, 2)"), (WHOLE[0], r"(2,)")]
)
def test_an_output_of_another_shape_is_too_far(part: Tensor | None, shape: str) -> None:
    error, text = level().compare("y", part, (1,))
    assert error == torch.inf
    assert text == f"sample 1 alone: shape {shape}, expected (1, 2)"


def test_an_output_without_values_agrees() -> None:
    assert level(WHOLE[:, :0]).compare("y", WHOLE[[1], :0], (1,)) == (0.0, "")


def test_a_tolerance_gives_each_value_its_bound() -> None:
    whole = {"y": torch.tensor([[-4.0], [2.0]])}
    made = tolerated_level(nn.Identity(), whole, Tolerance(rtol=0.25, atol=1.0))
    assert made.bounds["y"].tolist() == [[2.0], [1.5]]
    assert (made.name, made.allowance) == ("float32", "the tolerance is")


def measured(module: nn.Module, x: Tensor) -> list[PrecisionLevel]:
    whole: Tensors = {"y": module(x).detach()}
    with ExitStack() as stack:
        return measured_levels(module, whole, CallArguments((x,), {}), "y", stack)


def test_a_float32_module_is_compared_in_float64_first_with_finer_bounds() -> None:
    torch.manual_seed(0)
    fine, coarse = measured(nn.Linear(4, 4), torch.randn(3, 4))
    assert (fine.name, coarse.name) == ("float64", "float32")
    assert fine.whole["y"].dtype == torch.float64
    assert (coarse.bounds["y"] / fine.bounds["y"]).unique().item() == pytest.approx(2.0**29)
    assert 1e-7 < coarse.bounds["y"].max() < 1e-4


def test_a_float64_module_is_compared_in_float64_alone() -> None:
    torch.manual_seed(0)
    (fine,) = measured(nn.Linear(4, 4).double(), torch.randn(3, 4).double())
    assert fine.name == "float64"
    assert 1e-16 < fine.bounds["y"].max() < 1e-13


def test_integers_do_not_round() -> None:
    class Signs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).int()

    fine, coarse = measured(Signs(), torch.randn(3, 4))
    assert not fine.bounds["y"].any()
    assert not coarse.bounds["y"].any()
    assert coarse.name == "int32"


@pytest.mark.parametrize(("dtype", "other"), [("float32", "float64"), ("float64", "float32")])
def test_the_dtype_in_which_a_module_cannot_run_is_named(dtype: str, other: str) -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if str(x.dtype) != f"torch.{dtype}":
                raise TypeError("one dtype only")
            return x * 2

    x = torch.randn(4, 3).to(getattr(torch, dtype))
    with pytest.raises(GateError, match=f"Single cannot be run in {other}, .*TypeError: one dtype"):
        measured(Single(), x)
