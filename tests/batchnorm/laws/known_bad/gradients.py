"""Layers whose gradients are wrong."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.batchnorm.laws.known_bad.bases import (
    ChangesItsGradient,
    Composed,
    at_backward,
    column,
)
from tests.batchnorm.laws.known_bad.registry import breaks


@breaks("input_gradient", "double_backward")
class StatisticsAreConstants(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        return super().affine_map(x, values, mean.detach(), var.detach())


@breaks("input_gradient")
class VarianceIsConstant(Composed):
    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        return super().var(values, mean, dims).detach()


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, by: float) -> Tensor:
        ctx.by = by
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.by, None


@breaks("weight_gradient", "eval_weight_gradient")
class WeightGradientIsLarge(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        if self.weight is None:
            return super().affine_map(x, values, mean, var)
        wide = values.dtype
        y = (values - column(mean.to(wide), x)) * column(self.scale(var.to(wide)), x)
        weight = _Scaled.apply(self.weight, 1.001).to(wide)
        return y * column(weight, x) + column(self.bias.to(wide), x)


@breaks("bias_gradient", "eval_bias_gradient")
class BiasGradientIsSmall(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        y = super().affine_map(x, values, mean, var)
        if self.bias is None:
            return y
        bias = column(self.bias.to(values.dtype), x)
        return y - bias + _Scaled.apply(bias, 0.999)


@breaks("eval_input_gradient")
class EvalGradientIsOff(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        if not self.training and values.requires_grad:
            values = _Scaled.apply(values, 1.01)
        return super().affine_map(x, values, mean, var)


@breaks("gradients_accumulate")
class GradientsAreReplaced(Composed):
    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            self.weight.grad = None
        return super().forward(x)


@breaks("graphs_are_independent")
class DifferentiatesWithItsLatestStatistics(Composed):
    """Keep the batch's statistics on the module, where another forward overwrites them."""

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        y = super().affine_map(x, values, mean, var)
        if not y.requires_grad:
            return y
        self.latest = self.scale(var).detach()
        mine = self.latest
        y.register_hook(lambda g: g * column(self.latest / mine, g))
        return y


@breaks("graphs_are_independent")
class WritesTheGradientItself(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.requires_grad and self.weight is not None:
            y.register_hook(lambda g: setattr(self.weight, "grad", g.sum(dim=[0, 2, 3])))
        return y


@breaks("weight_gradient")
class RecoversXhFromItsOutput(Composed):
    """Compute d weight as the sum of g (y - b) / w, which is nothing where w is 0."""

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        if self.weight is None:
            return super().affine_map(x, values, mean, var)
        zero = (self.weight == 0).detach()
        weight = torch.where(zero, self.weight.detach(), self.weight)
        xh = (values - column(mean.to(values.dtype), x)) * column(
            self.scale(var.to(values.dtype)), x
        )
        wide = values.dtype
        return xh * column(weight.to(wide), x) + column(self.bias.to(wide), x)


class _KeptOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        y = value.clone()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad + 0 * y


@breaks("output_written_in_place")
class NeedsItsOutputInBackward(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _KeptOutput.apply(super().forward(x))


class _Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@breaks("forward_derivative")
class HasNoForwardDerivative(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _Same.apply(super().forward(x))


@breaks("graphs_are_independent")
class AsksItsModeInBackward(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return grad if self.training else 2 * grad


class _KeptUnchecked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor) -> Tensor:
        ctx.value, ctx.weight = value.detach(), weight
        return value * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad * ctx.weight, (grad * ctx.value).sum((0, 2, 3)).view_as(ctx.weight)


@breaks("output_written_in_place")
class MissesThatItsInputIsWritten(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.affine:
            return super().forward(x)
        mean, scale = column(self.running_mean, x), column(self.running_var + self.eps, x).rsqrt()
        y = _KeptUnchecked.apply(x, column(self.weight, x))
        return (y - mean * column(self.weight, x)) * scale + column(self.bias, x)


class _NoTangent(_Same):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return torch.zeros_like(tangent)


@breaks("forward_derivative")
class TakesItsBiasForConstant(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        without = super().affine_map(x, values, mean, var) - column(self.bias, x)
        return without + column(_NoTangent.apply(self.bias), x)


@breaks("needed_gradients")
class NeedsItsWeightToGiveAGradient(ChangesItsGradient):
    """Take the path of a frozen layer if the weight alone is frozen."""

    def change(self, grad: Tensor) -> Tensor:
        frozen = not self.weight.requires_grad and self.bias.requires_grad
        return grad * 1.5 if frozen else grad.clone()


@breaks("needed_gradients")
class NeedsItsBiasToGiveAGradient(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        frozen = self.weight.requires_grad and not self.bias.requires_grad
        return grad * 1.5 if frozen else grad.clone()


@breaks("needed_gradients")
class TracksNothingWhenFrozen(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        if any(p.requires_grad for p in self.parameters()):
            super().track(mean, var, n)


@breaks("workspaces")
class KeepsItsScaleByShape(Composed):
    """Keep what backward needs in a workspace, of which there is one a shape, for all layers."""

    kept: ClassVar[dict[torch.Size, Tensor]] = {}

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        mine = self.scale(var.detach().to(values.dtype))
        self.kept[x.shape] = mine
        y = super().affine_map(x, values, mean, var)
        return at_backward(y, lambda g: g * column(self.kept[x.shape] / mine, g))


@breaks("workspaces")
class WritesItsOutputByShape(nn.BatchNorm2d):
    """Give an output's memory to the next layer that makes one of the same shape."""

    last: ClassVar[dict[Any, tuple[nn.Module, Tensor]]] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not y.requires_grad:
            owner, memory = self.last.get((y.shape, y.dtype, y.stride()), (self, y))
            y = y if owner is self else memory.copy_(y)
            self.last[y.shape, y.dtype, y.stride()] = (self, y)
        return y


@breaks("workspaces")
class ReusesItsInputGradient(nn.BatchNorm2d):
    """Write each gradient of an input into the memory of the last one of its shape."""

    last: ClassVar[dict[Any, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(at_backward(x, self.keep))

    def keep(self, g: Tensor) -> Tensor:
        return self.last.setdefault((g.shape, g.dtype, g.stride()), torch.empty_like(g)).copy_(g)


@breaks("workspaces")
class ReusesItsWeightGradient(Composed):
    held: Tensor | None = None

    def weight_for(self, x: Tensor) -> Tensor:
        return at_backward(super().weight_for(x), self.keep)

    def keep(self, g: Tensor) -> Tensor:
        if self.held is None or self.held.dtype != g.dtype:
            self.held = torch.empty_like(g)
        return self.held.copy_(g)


@breaks("workspaces")
class EpsIsMissingFromACacheKey(Composed):
    cached: ClassVar[dict[int, float]] = {}

    def scale(self, var: Tensor) -> Tensor:
        return (var + self.cached.setdefault(len(var), self.eps)).rsqrt()


@breaks("gradients_accumulate")
class FlushesSmallGradients(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return torch.where(grad.abs() < 1e-12, 0, grad)


@breaks("gradients_accumulate")
class ClampsItsGradient(ChangesItsGradient):
    """Pass what half can hold through it: a scaled loss is beyond that."""

    def change(self, grad: Tensor) -> Tensor:
        return grad.clamp(-65504, 65504)
