"""What holds and what is told on a device without float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import (
    FrozenStateChanged,
    GateError,
    InvariantBroken,
    LawBroken,
    accumulates,
    assert_bn_conforms,
    batch_invariant,
    frozen,
    in_sync,
    same_output,
)
from tests.simulated_device.device import without_float64
from tests.simulated_device.models import batch, sgd, small_model, train_step
from tests.simulated_device.test_snippets import OutputOff


@pytest.fixture(autouse=True)
def _no_float64() -> Iterator[None]:
    with without_float64():
        yield


def test_a_write_is_told() -> None:
    model = small_model().eval()
    with pytest.raises(FrozenStateChanged) as broken, frozen(model):
        model[0].weight.data.add_(1)
    assert "30 of 30 values" in str(broken.value)


def test_a_drift_is_told() -> None:
    model, x = small_model(), batch()
    with pytest.raises(FrozenStateChanged) as broken, frozen(model):
        model(x)
    drifts = [change.drift for change in broken.value.verdict.changes if change.drift is not None]
    assert drifts
    assert all(0 < drift < 10 for drift in drifts)


def test_weight_decay_is_told() -> None:
    model, x = small_model().eval().requires_grad_(False), batch()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = sgd(model, weight_decay=0.1)

    def step() -> None:
        model(x)
        optimizer.step()

    with pytest.raises(FrozenStateChanged) as broken, frozen(model):
        step()
    assert broken.value.verdict.causes[0].name == "weight-decay"


def test_an_average_is_judged() -> None:
    model, x = small_model(), batch()
    average = copy.deepcopy(model).eval().requires_grad_(False)

    def update(decay: float) -> None:
        train_step(model, sgd(model), x)
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
            for slow, fast in zip(average.buffers(), model.buffers(), strict=True):
                slow.copy_(fast)

    with in_sync(model, average, decay=0.9):
        update(0.9)
    with pytest.raises(InvariantBroken), in_sync(model, average, decay=0.9):
        update(0.5)


def test_outputs_are_compared_within_a_tolerance() -> None:
    model, x = small_model().eval(), batch()
    with same_output(model, x, rtol=1e-3):
        model[0].weight.data.mul_(1 + 1e-6)
    with pytest.raises(InvariantBroken), same_output(model, x, rtol=1e-3):
        model[0].weight.data.mul_(2)


def test_batch_invariance_is_judged_by_a_tolerance_or_refused() -> None:
    model, x = small_model().eval(), batch()
    batch_invariant(model, x, rtol=1e-3, atol=1e-3)
    with pytest.raises(GateError, match=r"simdev:0 has no float64, .* to the CPU, or give rtol="):
        batch_invariant(model, x)


def test_accumulation_is_refused() -> None:
    def loss(model: nn.Module, x: Any) -> torch.Tensor:
        return model(x).square().mean()

    with pytest.raises(GateError, match=r"simdev:0 has no float64, .* to the CPU"):
        accumulates(small_model().eval(), batch(), 2, loss=loss)


def test_the_kit_leaves_float64_out() -> None:
    assert_bn_conforms(nn.BatchNorm2d, device="simdev", laws="training_output", examples=3)
    with pytest.raises(LawBroken):
        assert_bn_conforms(OutputOff, device="simdev", laws="training_output", examples=3)
    with pytest.raises(GateError, match="no law is left"):
        assert_bn_conforms(
            nn.BatchNorm2d, device="simdev", laws="training_output", dtypes="float64", examples=3
        )
