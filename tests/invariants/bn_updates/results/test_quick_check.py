"""What the quick check of many updates calls right is right, and what is wrong it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from pytest_bninvariants.invariants.bn_updates.layer_forward import EndedForward, LayerForward
from pytest_bninvariants.invariants.bn_updates.quick_check import find_surely_right
from pytest_bninvariants.invariants.bn_updates.reference_check import check_update
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import StatisticsReader


class Update(NamedTuple):
    """How a layer is updated.

    Args:
        channels: C.
        samples: N.
        momentum: the layer's.
        scale: of the batch's values.
        offset: of the batch's values.
        seed: of the batch.
        off: by which part of itself one statistic is off after the update.
    """

    channels: int
    samples: int
    momentum: float
    scale: float
    offset: float
    seed: int
    off: float = 0.0

    def run(self) -> EndedForward:
        """Run a layer's forward, and change one statistic after it."""
        x = torch.randn(
            self.samples, self.channels, 3, generator=torch.Generator().manual_seed(self.seed)
        )
        layer = nn.BatchNorm1d(self.channels, momentum=self.momentum)

        def step(values: Tensor) -> None:
            layer(values)
            index = self.seed % self.channels
            for each in (layer.running_mean, layer.running_var)[self.seed % 2 :][:1]:
                assert each is not None
                each[index] *= 1 + self.off

        return forward_of(layer, x * self.scale + self.offset, step)


def forward_of(layer: nn.Module, x: Tensor, run: Callable[[Tensor], object]) -> EndedForward:
    """Return the record of a forward of a layer."""
    with torch.no_grad():
        forward = LayerForward.begin(StatisticsReader(layer), x)
        forward.add_part(x)
        run(x)
        ended = forward.end(None, failed=False)
        return ended.on_host(ended.pieces)


updates = st.builds(
    Update,
    channels=st.integers(1, 5),
    samples=st.integers(2, 40),
    momentum=st.sampled_from([0.1, 0.01, 0.9, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    offset=st.sampled_from([0.0, 3.0, -1e3, 1e5]),
    seed=st.integers(0, 1000),
    off=st.sampled_from([0.0, 0.0, 1e-7, 1e-6, 1e-5, 1e-4, -1e-3, 0.1]),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(updates, min_size=1, max_size=4))
def test_what_is_called_right_is_right_by_the_reference(drawn: list[Update]) -> None:
    forwards = [each.run() for each in drawn]
    right = find_surely_right(forwards)
    for forward in forwards:
        if id(forward) in right:
            assert not check_update(forward, 1, is_right=False).wrong


@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("offset", [0.0, 3.0, -1e3])
def test_right_updates_are_called_right(offset: float, momentum: float) -> None:
    forwards = [Update(c, 16, momentum, 1.0, offset, c).run() for c in (1, 3, 64)]
    assert find_surely_right(forwards) == {*map(id, forwards)}


@pytest.mark.parametrize("seed", [0, 1])
def test_one_wrong_value_of_many_is_left_to_the_reference(seed: int) -> None:
    right = Update(3, 16, 0.1, 1.0, 2.0, 4).run()
    wrong = Update(64, 16, 0.1, 1.0, 2.0, seed, off=0.01).run()
    assert find_surely_right([right, wrong, right]) == {id(right)}
    assert [each.name for each in check_update(wrong, 1, is_right=False).wrong] == [
        ("running_mean", "running_var")[seed]
    ]


def test_no_update_is_called_right() -> None:
    layer = nn.BatchNorm1d(3)
    assert not find_surely_right([forward_of(layer, torch.zeros(4, 3), lambda x: None)])


def test_other_dtypes_and_unknown_weights_are_left_to_the_reference() -> None:
    double, unknown = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3)
    unknown.momentum = float("nan")
    x = torch.randn(8, 3)
    forwards = [
        forward_of(double, x.double(), double),
        forward_of(
            unknown,
            x,
            lambda values: nn.functional.batch_norm(
                values, unknown.running_mean, unknown.running_var, training=True
            ),
        ),
    ]
    assert find_surely_right(forwards) == set()
    assert not check_update(forwards[0], 1, is_right=False).wrong
