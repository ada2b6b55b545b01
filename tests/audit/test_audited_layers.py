"""A layer that trains stands beside one that may be its average if it is of one kind and size."""

from __future__ import annotations

import pytest
from torch import nn

from pytest_bninvariants.audit.audited_layers import AuditedLayers


@pytest.mark.parametrize(
    ("other", "is_alike"),
    [
        (nn.BatchNorm1d(3), True),
        (nn.BatchNorm1d(4), False),
        (nn.BatchNorm2d(3), False),
        (nn.BatchNorm1d(3).requires_grad_(False), False),
        (nn.BatchNorm1d(3, affine=False), False),
    ],
)
def test_another_layer_trains_like_a_layer_if_kind_and_size_are_the_same(
    other: nn.Module, is_alike: bool
) -> None:
    layers, layer = AuditedLayers(), nn.BatchNorm1d(3)
    layers.add(layer)
    assert not layers.any_trains_like(layer)
    layers.add(other)
    assert layers.any_trains_like(layer) == is_alike


def test_a_layer_that_has_died_trains_no_more() -> None:
    layers, layer = AuditedLayers(), nn.BatchNorm1d(3)
    layers.add(nn.BatchNorm1d(3))
    assert not layers.any_trains_like(layer)
    assert [record.kind for record in layers.take_dead()] == ["BatchNorm1d"]
    assert len(layers) == 0
