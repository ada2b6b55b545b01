"""How often a guard makes the host wait for a device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, InvariantBroken, bn_updates, frozen_bn, trains
from pytest_bninvariants.state_change import before_after
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


def freeze_batch_norms(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.eval().requires_grad_(False)


def test_frozen_bn_that_holds_waits_for_its_snapshot_and_its_comparison() -> None:
    model, step = trained_model()
    freeze_batch_norms(model)
    with counted() as happened, frozen_bn(model):
        step()
    assert happened.waits <= 4


def test_a_step_that_is_frozen_correctly_is_not_waited_for() -> None:
    model, step = trained_model()
    freeze_batch_norms(model)
    with frozen_bn(model), counted() as happened:
        step()
    assert happened.waits == 0


def test_frozen_bn_that_is_broken_by_an_optimizer_waits_a_few_times_more() -> None:
    model, step = trained_model()
    model.eval()
    with counted() as happened, pytest.raises(FrozenStateChanged) as broken, frozen_bn(model):
        step()
    assert "gradient-step" in str(broken.value)
    assert happened.waits <= 12


def test_frozen_bn_that_is_broken_by_a_forward_waits_a_few_times_more() -> None:
    model, step = trained_model()
    with counted() as happened, pytest.raises(FrozenStateChanged) as broken, frozen_bn(model):
        step()
    assert "training-mode" in str(broken.value)
    assert sum(change.drift is not None for change in broken.value.verdict.changes) == LAYERS
    assert happened.waits <= 12


def test_the_drift_of_large_statistics_is_read_with_one_wait_more() -> None:
    model, x = nn.Sequential(*[nn.BatchNorm1d(5000) for _ in range(8)]).to(DEVICE), batch(5000)
    with counted() as happened, pytest.raises(FrozenStateChanged) as broken, frozen_bn(model):
        model(x)
    drifts = [change.drift for change in broken.value.verdict.changes if change.drift is not None]
    assert len(drifts) == 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(before_after, "with_drift", lambda changes, *_: changes)
        model = nn.Sequential(*[nn.BatchNorm1d(5000) for _ in range(8)]).to(DEVICE)
        with counted() as without, pytest.raises(FrozenStateChanged), frozen_bn(model):
            model(x)
    assert happened.waits <= without.waits + 2


def test_trains_waits_a_few_times_in_a_step() -> None:
    model, step = trained_model()
    with trains(model), counted() as inside:
        step()
    assert inside.waits <= 10
    assert waits_of_holding(trains(model), step).waits <= LAYERS


def test_trains_that_is_broken_waits_for_what_is_still_and_for_no_more() -> None:
    model, step = trained_model()
    model[-1].weight.requires_grad_(False)
    with counted() as happened, pytest.raises(InvariantBroken), trains(model, "*"):
        step()
    assert happened.waits <= 30
