"""Which BN layers somebody wants to train."""

from __future__ import annotations

import pytest
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants.selection.layers_to_train import layers_to_train


def names_to_train(model: nn.Module) -> list[str]:
    found = layers_to_train(model)
    return [name for name, module in model.named_modules() if id(module) in found]


def test_a_layer_trains_if_one_of_its_parameters_requires_a_gradient_whatever_its_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3))
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)
    assert names_to_train(model) == ["1", "2"]


@pytest.mark.parametrize("trains", [True, False])
def test_a_layer_without_parameters_goes_with_the_innermost_module_that_has_some(
    trains: bool,
) -> None:
    part = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3, affine=False)))
    model = nn.Sequential(part.requires_grad_(trains), nn.Linear(3, 3).requires_grad_(not trains))
    assert names_to_train(model) == (["0.1.0"] if trains else [])


def test_without_any_parameter_the_mode_decides() -> None:
    layer = nn.BatchNorm1d(3, affine=False)
    assert names_to_train(layer) == [""]
    assert names_to_train(layer.eval()) == []


def test_a_layer_that_holds_its_weight_as_a_buffer_never_trains() -> None:
    assert names_to_train(nn.Sequential(nn.Conv2d(3, 3, 1), FrozenBatchNorm2d(3))) == []
    assert names_to_train(nn.utils.parametrizations.weight_norm(nn.BatchNorm1d(3))) == [""]
