"""The first layer is found whose outputs depend on which samples the rank has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.invariants.rank_invariant.layer_outputs import first_layer_that_differs
from pytest_bninvariants.invariants.rank_invariant.shard_pass import ShardedBatch

BATCH = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Mixing(nn.Module):
    """Move each sample by a share of the batch's mean."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * x.mean(0)


class Told(nn.Module):
    """Return something else than one row for each sample."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> object:
        whole = {"mean": x.mean(), "row": x.mean(0), "number": len(x)}
        return whole[self.of]


class Sees(nn.Module):
    """Call a layer, and go on with its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        return x


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def first(*layers: nn.Module, position: int = 1) -> str | None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 2))
    return first_layer_that_differs(model, ShardedBatch.split(BATCH, 3, position), squares)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_layers_that_look_at_one_sample_are_none(position: int) -> None:
    assert first(nn.ReLU(), nn.BatchNorm1d(4).eval(), position=position) is None


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_first_of_those_that_differ_is_named(position: int) -> None:
    assert first(nn.ReLU(), Mixing(), nn.BatchNorm1d(4), position=position) == "2"


def test_a_layer_with_children_is_told_by_them() -> None:
    assert first(nn.Sequential(nn.ReLU(), Mixing())) == "1.1"


@pytest.mark.parametrize(("share", "name"), [(1e-8, "1"), (1e-12, None)])
def test_a_difference_counts_if_it_is_far_above_rounding(share: float, name: str | None) -> None:
    assert first(Mixing(share)) == name


@pytest.mark.parametrize("of", ["mean", "row", "number"])
def test_outputs_without_a_row_for_each_sample_say_nothing(of: str) -> None:
    assert first(Sees(Told(of))) is None


class Above(nn.Module):
    """Tell of each value whether it is above the batch's mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x > x.mean(0)


def test_outputs_that_are_no_floats_are_compared_exactly() -> None:
    assert first(Sees(Above())) == "1.layer"


def test_only_the_first_call_of_a_layer_counts() -> None:
    shared = nn.ReLU()
    assert first(shared, Mixing(), shared) == "2"


def test_an_output_without_values_differs_in_none() -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :0]

    assert first(Sees(Empty())) is None
