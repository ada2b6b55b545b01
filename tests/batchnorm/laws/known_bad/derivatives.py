"""Layers whose derivatives cannot be taken of derivatives, or of a batch of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.batchnorm.laws.known_bad.bases import ChangesItsGradient, Composed
from tests.batchnorm.laws.known_bad.registry import breaks


@breaks("batched_gradients")
class LooksAtItsGradient(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return grad.clone() if grad.any() else torch.zeros_like(grad)


@breaks("vmap")
class LooksAtItsInput(Composed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.training or x.isfinite().all() else x.clone())


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(g: Tensor) -> Tensor:
        return g.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], g: Tensor) -> tuple[Tensor, int]:
        return g.flip(in_dims[0]), in_dims[0]


class _ReversesBatches(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _Reversed.apply(g)


@breaks("vmap")
class MixesUpBatchedGradients(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _ReversesBatches.apply(super().forward(x))


class _SecondOff(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor) -> Tensor:
        return g.clone()

    @staticmethod
    def backward(ctx: Any, gg: Tensor) -> Tensor:
        return 1.01 * gg


@breaks("double_backward")
class SecondDerivativeOffInEval(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return grad if self.training else _SecondOff.apply(grad)


class _Detached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_forward(y)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return t.detach().clone()


@breaks("forward_derivative")
class ForwardDerivativeIsConstant(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _Detached.apply(super().forward(x))


@breaks("double_backward_affine_off")
class SecondDerivativeOffWithoutWeight(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return grad.clone() if self.weight is not None else _SecondOff.apply(grad)


@breaks("forward_derivative")
class TangentOfItsWeightReplacesThatOfItsInput(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        unpack = torch.autograd.forward_ad.unpack_dual
        if self.weight is None or unpack(self.weight).tangent is None:
            return super().affine_map(x, values, mean, var)
        return super().affine_map(x, *(unpack(each).primal for each in (values, mean, var)))


class _ReversesWeights(_ReversesBatches):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], w: Tensor) -> tuple[Tensor, int]:
        return w.flip(in_dims[0]), in_dims[0]


@breaks("vmap_parameters")
class MixesUpBatchedWeights(Composed):
    def weight_for(self, x: Tensor) -> Tensor:
        return _ReversesWeights.apply(self.weight)


@breaks("vmap_parameters")
class MixesUpGradientsPerSample(Composed):
    def weight_for(self, x: Tensor) -> Tensor:
        return _ReversesBatches.apply(self.weight)


@breaks("vmap_parameters")
class MixesUpBatchesInTraining(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return _ReversesWeights.apply(super().mean(values, dims))


class _ReversesTangents(_ReversesBatches):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clone()

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return _Reversed.apply(t)


@breaks("vmap_parameters")
class MixesUpBatchedTangents(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _ReversesTangents.apply(super().forward(x))
