"""A snippet of the conformance kit reproduces the failure on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import LawBroken, assert_bn_conforms


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 1.01


class InputGradientOff(nn.BatchNorm2d):
    """The gradient of its input is off."""

    def forward(self, x: Tensor) -> Tensor:
        return _WrongGradient.apply(super().forward(x))


class WeightGradientLost(nn.BatchNorm2d):
    """A second backward adds nothing to the gradient of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if weight is not None and weight.requires_grad:
            weight.register_hook(lambda g: g * (0 if weight.grad is not None else 1.01))
        return super().forward(x)


class OutputOff(nn.BatchNorm2d):
    """Its output is off."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.001


@pytest.mark.parametrize(
    ("layer", "law"),
    [
        (OutputOff, "training_output"),
        (InputGradientOff, "input_gradient"),
        (InputGradientOff, "layouts"),
        (WeightGradientLost, "weight_gradient"),
        (WeightGradientLost, "gradients_accumulate"),
    ],
)
def test_a_snippet_reproduces_on_the_device(layer: type[nn.Module], law: str) -> None:
    with pytest.raises(LawBroken) as broken:
        assert_bn_conforms(layer, device="simdev", laws=law, examples=12, dtypes="float32")
    lines = broken.value.snippet.splitlines()
    code = "\n".join(line for line in lines if layer.__module__ not in line)
    with pytest.raises(AssertionError):
        exec(code, {layer.__name__: layer})
