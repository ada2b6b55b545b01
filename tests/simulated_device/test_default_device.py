"""torch.set_default_device of the user's changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pytest_bninvariants import (
    FrozenStateChanged,
    LawBroken,
    ReferenceBatchNorm,
    assert_bn_conforms,
    batch_invariant,
    bn_updates,
    frozen_bn,
)
from pytest_bninvariants.batchnorm.train_batches import TrainBatch
from tests.simulated_device.models import DEVICE, batch, sgd, small_model, train_step
from tests.simulated_device.test_snippets import OutputOff


@pytest.fixture(autouse=True)
def _default_device() -> Iterator[None]:
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)


def test_guards_judge_as_without() -> None:
    model, x = small_model(), batch()
    with bn_updates(model):
        train_step(model, sgd(model), x)
    with pytest.raises(FrozenStateChanged), frozen_bn(model):
        model(x)


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_the_kit_judges_as_without(device: str) -> None:
    options = {"device": device, "examples": 3, "dtypes": "float32"}
    laws = ["training_output", "running_var", "input_gradient", "eval_output", "construction"]
    assert_bn_conforms(nn.BatchNorm2d, laws=laws, **options)
    with pytest.raises(LawBroken):
        assert_bn_conforms(OutputOff, laws="training_output", **options)


def test_the_reference_stays_on_the_cpu() -> None:
    reference, x = ReferenceBatchNorm(3), torch.randn(4, 3, device="cpu")
    assert {each.device.type for each in reference.state_dict().values()} == {"cpu"}
    assert reference(x).device.type == "cpu"
    assert reference.gradients(x, x).input.device.type == "cpu"


def test_batch_invariance_is_judged() -> None:
    batch_invariant(small_model().eval(), batch())


def test_drawn_batches_are_made_where_they_belong() -> None:
    assert TrainBatch.of((2, 3), classes=2).inputs.device.type == "cpu"
    assert TrainBatch.of((2, 3), device=DEVICE).targets.device.type == DEVICE
