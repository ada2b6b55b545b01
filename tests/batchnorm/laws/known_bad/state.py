"""Layers that make, update or reset their state wrongly."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.batchnorm.laws.known_bad.bases import Composed
from tests.batchnorm.laws.known_bad.registry import breaks


@breaks("construction")
class AnotherDefaultEps(Composed):
    def __init__(self, num_features: int, eps: float = 1e-3, *args: Any, **kwargs: Any) -> None:
        super().__init__(num_features, eps, *args, **kwargs)


@breaks("construction")
class SwapsEpsAndMomentum(Composed):
    def __init__(
        self, num_features: int, momentum: float = 0.1, eps: float = 1e-5, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(num_features, eps, momentum, *args, **kwargs)


@breaks("state_in_place")
class RebindsItsBuffers(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        self.running_mean = self.running_mean.clone()
        super().track(mean, var, n)


@breaks("no_grad_updates")
class UpdatesOnlyWithGradients(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        if torch.is_grad_enabled():
            super().track(mean, var, n)


@breaks("instances_are_independent")
class SharesItsMean(Composed):
    shared: ClassVar[dict[int, Tensor]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.running_mean is not None:
            self.running_mean = self.shared.setdefault(self.num_features, self.running_mean)


@breaks("reset")
class ResetsTheMeanAlone(Composed):
    def reset_running_stats(self) -> None:
        if self.running_mean is not None and hasattr(self, "made"):
            self.running_mean.zero_()
        else:
            super().reset_running_stats()
            self.made = True


@breaks("state_dtype")
class PromotesItsMean(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        super().track(mean, var, n)
        self.running_mean = self.running_mean.float()


@breaks("no_grad_updates")
class CountsWithGradientsOnly(Composed):
    def count(self) -> None:
        self.num_batches_tracked.add_(int(torch.is_grad_enabled()))


@breaks("reset")
class ResetsIntoNewTensors(nn.BatchNorm2d):
    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        if self.running_var is not None:
            self.running_var = self.running_var.clone()


@breaks("reset")
class ResetsIntoANewWeight(nn.BatchNorm2d):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.affine:
            self.weight = nn.Parameter(torch.ones_like(self.weight))


@breaks("no_grad_updates")
class GraphUnderNoGrad(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            return super().forward(x)
        with torch.enable_grad():
            return super().forward(x)


@breaks("state_in_place")
class AverageIsRebound(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.momentum is None and self.running_mean is not None:
            self.running_mean = self.running_mean.clone()
        return super().forward(x)


@breaks("construction")
class CounterOnTheCpu(nn.BatchNorm2d):
    def __init__(self, *args: Any, device: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, device=device, **kwargs)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked = torch.tensor(0)


@breaks("construction")
class DrawsWhenMade(nn.BatchNorm2d):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        torch.rand(1)


@breaks("eval_follows_state")
class KeepsItsFirstWeight(nn.BatchNorm2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__["first"] = self.weight

    def forward(self, x: Tensor) -> Tensor:
        held, self._parameters["weight"] = self._parameters["weight"], self.first
        try:
            return super().forward(x)
        finally:
            self._parameters["weight"] = held


@breaks("construction")
class BuffersAlwaysInFloat32(nn.BatchNorm2d):
    def __init__(self, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(*args, dtype=dtype, **kwargs)
        if dtype is None and self.running_mean is not None:
            self.running_mean = self.running_mean.float()


@breaks("construction")
class PassesItsDeviceOnButForTheCounter(nn.BatchNorm2d):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked = torch.tensor(0, device="cpu")


@breaks("optimizer_steps")
class CastsItsWeightOnce(Composed):
    """Keep a cast of the weight until the mode is set again."""

    held: Tensor | None = None

    def train(self, mode: bool = True) -> CastsItsWeightOnce:
        self.held = None
        return super().train(mode)

    def weight_for(self, x: Tensor) -> Tensor:
        weight = super().weight_for(x)
        if self.held is None or self.held.shape != weight.shape:
            self.held = weight.detach().clone()
        return weight + (self.held - weight).detach()


@breaks("functional_call")
class ReadsItsParameterByName(Composed):
    def weight_for(self, x: Tensor) -> Tensor:
        assert self._parameters["weight"] is not None
        return super().weight_for(x)


@breaks("functional_call")
class UpdatesTheBuffersItWasMadeWith(Composed):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_with = [self.running_mean]

    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        super().track(mean, var, n)
        (first,) = self.made_with
        if first is not self.running_mean and first.shape == self.running_mean.shape:
            first.copy_(self.running_mean)


@breaks("construction")
class ShowsItsWeight(nn.BatchNorm2d):
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight={tuple(self.weight.shape)}"


@breaks("no_grad_updates")
class AveragesOnlyWithGradients(Composed):
    def factor(self) -> float:
        return super().factor() if torch.is_grad_enabled() else self.momentum or 0.1
