"""Layers of other kinds, models of other libraries, and ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from pytest_bninvariants import bn_updates
from tests.invariants.bn_updates.steps import broken, told, train, values
from tests.watching import watching


@pytest.mark.parametrize(
    "model",
    [
        nn.LazyBatchNorm1d(),
        nn.BatchNorm1d(3, momentum=None),
        nn.BatchNorm1d(3, affine=False),
        nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)),
        nn.SyncBatchNorm(3),
        nn.utils.parametrizations.weight_norm(nn.BatchNorm1d(3)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_layers_of_other_sorts_hold(model: nn.Module) -> None:
    with watching(bn_updates(model), layers=1):
        model.train()(values())


def test_an_instance_norm_that_tracks_is_counted_and_its_values_are_not_judged() -> None:
    model = nn.InstanceNorm1d(3, track_running_stats=True)
    with bn_updates(model) as guard:
        model(values(shape=(4, 3, 5)))
    assert guard.verdict is not None
    assert "were not checked against the reference" in guard.verdict.notes[0]
    assert told(broken(model, lambda: model(values(shape=(4, 3, 5))), times=2))


def test_models_of_timm_and_torchvision_hold() -> None:
    model = timm.create_model("resnet10t", num_classes=2)
    with bn_updates(model) as guard:
        train(model, values(shape=(2, 3, 64, 64)))
    assert guard.verdict is not None
    assert guard.verdict.layers > 10
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=64
    )
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    with watching(bn_updates(detector, "backbone.body.*.1"), layers=46):
        losses = detector.train()([torch.rand(3, 64, 64)] * 2, [target] * 2)
        sum(losses.values()).backward()


def test_autocast_and_frozen_parts_of_a_resnet_hold() -> None:
    model = resnet18(num_classes=2)
    model.layer1.requires_grad_(False).eval()
    with bn_updates(model) as guard, torch.autocast("cpu", torch.bfloat16):
        train(model, values(shape=(2, 3, 64, 64)))
    assert guard.verdict is not None
    assert guard.verdict.layers == 16


@pytest.mark.parametrize("broadcast", [True, False])
def test_both_ranks_of_ddp_hold_and_see_a_second_forward(
    broadcast: bool, ranks: Callable[..., list[Any]]
) -> None:
    found = ranks("ranks/updating_rank.py", str(int(broadcast)))
    assert found == [{"one": [], "two": ["extra-forward"], "sharded": []}] * 2
