"""How values moved is told from their bytes, for every dtype that torch can store."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.state_change.value_patterns import (
    are_finite,
    casts_of,
    count_no_longer_finite,
    has_initial_statistics,
    has_initial_values,
    only_became_plain,
    uniform_factor,
)
from pytest_bninvariants.torch_internals.isolation import undisturbed

NAN = float("nan")


def kept(tensor: Tensor) -> KeptTensor:
    with undisturbed():
        return take_snapshot({"x": WatchedTensor("x", "", "buffer", tensor)})["x"]


def test_each_tensor_is_told_whether_it_is_certainly_finite() -> None:
    tensors = [torch.ones(2), torch.tensor([1.0, NAN]), torch.tensor(1), torch.tensor(-torch.inf)]
    assert are_finite(tensors) == [True, False, True, False]
    assert are_finite(tensors[::-1]) == [False, True, False, True]
    stored_only = torch.zeros(2, dtype=torch.uint8).view(torch.bits8)
    assert are_finite([stored_only, torch.ones(1)]) == [False, True]


@pytest.mark.parametrize(
    ("old", "new", "factor"),
    [
        ([1.0, -2.0], [0.5, -1.0], 0.5),
        ([1.0, 0.0], [0.5, 0.0], 0.5),
        ([1.0, 2.0], [0.5, 1.2], 0.55),  # a spread of 0.1 where 0.1125 is allowed
        ([1.0, 2.0], [0.5, 1.26], None),
        ([1.0, 2.0], [1.0, 2.0], None),
        ([1.0, 2.0], [2.0, 4.0], None),
        ([1.0, 2.0], [-0.5, -1.0], None),
        ([0.0, 0.0], [0.0, 1.0], None),
    ],
)
def test_values_that_shrank_alike_have_a_factor(
    old: list[float], new: list[float], factor: float | None
) -> None:
    found = uniform_factor(kept(torch.tensor(old)), torch.tensor(new))
    assert found == (factor if factor is None else pytest.approx(factor))
    assert uniform_factor(kept(torch.tensor(old)), torch.tensor([new])) is None
    assert uniform_factor(kept(torch.tensor([1, 2])), torch.tensor([0, 1])) is None


def test_a_cast_and_back_is_recognised_by_the_values_that_it_leaves() -> None:
    old = torch.tensor([1.1, 1.0])
    assert casts_of(kept(old), old.bfloat16().float()) == {"bfloat16"}
    assert casts_of(kept(old), old.clone()) == frozenset()
    assert casts_of(kept(old), old + 1) == frozenset()
    coarse = torch.tensor([1 + 2**-4 + 2**-12, 1.0])
    assert casts_of(kept(coarse), torch.tensor([1 + 2**-4, 1.0])) == {"bfloat16", "float16"}


@pytest.mark.parametrize(
    ("old", "new"), [(1.0000001, 1.0), (0.5000001, 0.5), (1e-30, 0.0), (1e6, torch.inf)]
)
def test_values_that_a_cast_leaves_may_be_plain(old: float, new: float) -> None:
    before = torch.tensor([old, 1.1])
    assert torch.equal(before[:1].half().float(), torch.tensor([new]))
    assert only_became_plain(kept(before), torch.tensor([new, 1.1]))
    assert not only_became_plain(kept(before), before.half().float())
    assert not only_became_plain(kept(torch.tensor([1])), torch.tensor([2]))


def test_only_values_that_were_finite_count_as_no_longer_so() -> None:
    old = torch.tensor([NAN, 1.0, 2.0])
    assert count_no_longer_finite(kept(old), torch.tensor([NAN, NAN, -torch.inf])) == 2
    assert count_no_longer_finite(kept(old), torch.tensor([NAN, 1.0, 2.0])) == 0
    assert count_no_longer_finite(kept(torch.tensor([1, 2])), torch.tensor([3, 4])) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("running_mean", 0),
        ("running_var", 1),
        ("num_batches_tracked", 0),
        ("weight", 1),
        ("bias", 0),
    ],
)
def test_a_new_layers_values_are_known_by_name(name: str, value: int) -> None:
    assert has_initial_values(torch.full((2,), float(value)), name)
    assert not has_initial_values(torch.tensor([value, 2.0]), name)
    assert not has_initial_values(torch.full((2,), 1.0 - value), name)
    assert not has_initial_values(torch.full((2,), float(value)), "other")


@pytest.mark.parametrize(("mean", "var"), [(0.0, 1.0), (0.0, 2.0), (1.0, 1.0), (1.0, 2.0)])
def test_statistics_are_those_of_a_new_layer_if_both_are(mean: float, var: float) -> None:
    layer = nn.BatchNorm1d(2)
    layer.running_mean[1] = mean
    layer.running_var[1] = var
    assert has_initial_statistics(layer) == ((mean, var) == (0, 1))
