"""Layers that leave traces of a call, or are deaf to what surrounds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.batchnorm.laws.known_bad.bases import ChangesItsGradient, Composed
from tests.batchnorm.laws.known_bad.registry import breaks


@breaks("input_unmodified")
class WorksInPlace(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x.data.copy_(y.detach())
        return y


@breaks("no_side_effects")
class AddsNoise(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-30 * torch.rand(())


@breaks("compile")
class DiffersWhenCompiled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 1.01 if torch.compiler.is_compiling() else y


@breaks("input_unmodified", "no_side_effects")
class TurnsGradientsOn(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            x.requires_grad_(x.is_leaf)
        return super().forward(x)


@breaks("no_side_effects")
class NoGradientsAfterAnError(Composed):
    def forward(self, x: Tensor) -> Tensor:
        enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(enabled and x.shape[1] == self.num_features)
        y = super().forward(x)
        torch.set_grad_enabled(enabled)
        return y


@breaks("no_side_effects")
class DeterministicAfterAnError(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        y = super().forward(x)
        torch.use_deterministic_algorithms(before)
        return y


@breaks("hooks")
class CallsItsForwardStraight(nn.BatchNorm2d):
    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


@breaks("hooks")
class ForgetsHooksAtInference(nn.BatchNorm2d):
    def __call__(self, x: Tensor) -> Tensor:
        inferring = not self.training and not torch.is_grad_enabled()
        return self.forward(x) if inferring else super().__call__(x)


@breaks("input_unmodified")
class WritesIntoTheGradientItGets(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        result = grad.clone()
        grad.mul_(0.5)
        return result


@breaks("surroundings", "training_surroundings")
class MakesTensorsOfTheDefaultKind(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.zeros(1)


@breaks("surroundings")
class AsksForGradientsInEval(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else super().forward(x).requires_grad_()


@breaks("surroundings")
class KeepsACastFromInferenceMode(Composed):
    """Cast the weight once for each of its versions, be it under inference_mode()."""

    held: tuple[int, Tensor] | None = None

    def weight_for(self, x: Tensor) -> Tensor:
        if self.training:
            return self.weight
        version = self.weight._version
        if self.held is None or self.held[0] != version or self.held[1].dtype != self.weight.dtype:
            self.held = version, self.weight.detach().clone()
        return self.held[1]


@breaks("no_side_effects")
class LetsCudnnTune(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        torch.backends.cudnn.benchmark = True
        return super().forward(x)


@breaks("no_side_effects")
class TunesCudnnWhenMade(nn.BatchNorm2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        torch.backends.cudnn.benchmark = True
