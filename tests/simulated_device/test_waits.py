"""How often a guard makes the host wait for a device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import InvariantBroken, bn_updates
from tests.simulated_device.device import Counted, counted
from tests.simulated_device.models import DEVICE, batch, deep_model, sgd, train_step

LAYERS = 50


def trained_model() -> tuple[nn.Module, Callable[[], None]]:
    """Return a model that was trained for two steps, and a function that makes one more."""
    model, x = deep_model(LAYERS), batch(6)
    optimizer = sgd(model, lr=0.01)

    def step() -> None:
        train_step(model, optimizer, x)

    step()
    step()
    return model, step


def waits_of_holding(guard: AbstractContextManager[object], step: Callable[[], None]) -> Counted:
    with counted() as happened, guard:
        step()
    return happened


def test_bn_updates_waits_seldom_and_never_for_a_layer() -> None:
    model, step = trained_model()
    with bn_updates(model), counted() as inside:
        step()
    assert inside.waits <= 2  # whether gradients are zero, after backward and before the step
    assert waits_of_holding(bn_updates(model), step).waits <= 12


def test_bn_updates_that_is_broken_waits_as_seldom() -> None:
    model, step = trained_model()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.momentum = 0.0
    with counted() as happened, pytest.raises(InvariantBroken), bn_updates(model):
        step()
    assert happened.waits <= 12


def test_bn_updates_copies_no_input_to_the_host() -> None:
    model = nn.Sequential(nn.Linear(16, 256), nn.BatchNorm1d(256)).to(DEVICE)
    x: Tensor = torch.randn(512, 16).to(DEVICE)
    happened = waits_of_holding(bn_updates(model), lambda: model(x).sum().backward())
    assert happened.copied_to_host < 512 * 256 * 4 / 4


def test_a_long_step_is_read_in_parts() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).to(DEVICE)
    x = batch(6)
    with counted() as happened, bn_updates(model, times=3000):
        for _ in range(3000):
            model(x)
            x = x + 1
    assert 2 < happened.waits < 40
