"""What a layer normalises with is what its flags are said to mean."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.bn_layers import (
    has_known_forward,
    has_stored_statistics,
    uses_batch_statistics,
)

FAMILIES: list[tuple[type[nn.Module], tuple[int, ...]]] = [
    (nn.BatchNorm1d, (4, 2)),
    (nn.BatchNorm2d, (4, 2, 3, 3)),
    (nn.BatchNorm3d, (4, 2, 2, 2, 2)),
    (nn.InstanceNorm1d, (4, 2, 5)),
    (nn.InstanceNorm2d, (4, 2, 3, 3)),
    (nn.InstanceNorm3d, (4, 2, 2, 2, 2)),
]
FLAGS = ("affine", "track_running_stats", "training", "switched", "without")


def normalised_with_the_batch(layer: nn.Module, batch: Tensor) -> bool:
    """Find out by running: stored statistics leave a sample's output to that sample alone."""
    torch.manual_seed(0)
    other = torch.randn_like(batch) * 9 + 5
    other[0] = batch[0]
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        moved = 3 * batch + 7  # an instance's own statistics take a shift and a scale out again
        return torch.allclose(layer(batch), layer(moved), atol=1e-3)
    return not torch.allclose(layer(batch)[0], layer(other)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "shape"), FAMILIES, ids=lambda value: getattr(value, "__name__", "")
)
@pytest.mark.parametrize(
    "flags", list(itertools.product([False, True], repeat=len(FLAGS))), ids=str
)
def test_a_layers_flags_say_what_it_normalises_with(
    family: type[nn.Module], shape: tuple[int, ...], flags: tuple[bool, ...]
) -> None:
    affine, tracks, training, switched, without = flags
    layer: Any = family(2, affine=affine, track_running_stats=tracks, momentum=0.0)
    layer.train(training)
    if without and tracks:
        layer.running_mean = layer.running_var = None
    if switched:
        layer.track_running_stats = not tracks
    is_instance = isinstance(layer, nn.modules.instancenorm._InstanceNorm)
    if is_instance and layer.track_running_stats and layer.running_mean is None and not training:
        return  # torch raises: nothing to normalise with
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert has_known_forward(layer)
    assert uses_batch_statistics(layer) == normalised_with_the_batch(layer, batch)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tracks", [False, True])
def test_sync_batch_norm_is_read_as_batch_norm(training: bool, tracks: bool) -> None:
    sync = nn.SyncBatchNorm(2, track_running_stats=tracks).train(training)
    plain = nn.BatchNorm2d(2, track_running_stats=tracks).train(training)
    assert has_known_forward(sync)
    assert uses_batch_statistics(sync) == uses_batch_statistics(plain)


def without(statistic: str) -> nn.Module:
    layer = nn.BatchNorm1d(2)
    setattr(layer, statistic, None)
    return layer


@pytest.mark.parametrize(
    ("layer", "stored"),
    [
        (nn.BatchNorm1d(2), True),
        (nn.BatchNorm1d(2, track_running_stats=False), False),
        (nn.InstanceNorm1d(2), False),
        (nn.Linear(2, 2), False),
        (without("running_mean"), False),
        (without("running_var"), False),
    ],
)
def test_a_layer_has_stored_statistics_or_not(layer: nn.Module, stored: bool) -> None:
    assert has_stored_statistics(layer) == stored


class OwnForward(nn.BatchNorm2d):
    def forward(self, batch: Tensor) -> Tensor:
        return super().forward(batch)


def forward_on_the_instance() -> nn.Module:
    layer = nn.BatchNorm2d(2)
    layer.forward = lambda batch: batch  # type: ignore[method-assign]
    return layer


class ByItsBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("running_var", torch.ones(2))


@pytest.mark.parametrize("layer", [OwnForward(2), forward_on_the_instance(), ByItsBuffers()])
def test_an_own_forward_is_not_taken_for_torchs(layer: nn.Module) -> None:
    assert not has_known_forward(layer)


class WithoutForward(nn.BatchNorm2d):
    pass


def test_a_subclass_without_a_forward_has_torchs() -> None:
    assert has_known_forward(WithoutForward(2))
