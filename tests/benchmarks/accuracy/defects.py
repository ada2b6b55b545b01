"""A right BatchNorm of plain operators, and the same with one defect each, as a port may have."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.batchnorm.laws.columns import column
from tests.batchnorm.laws.known_bad.bases import Composed

DEFECTS: dict[str, type[Plain]] = {}


class Plain(Composed):
    """A right BatchNorm of any rank; each class below it is a defect, named by its docstring."""

    def __init_subclass__(cls) -> None:
        assert cls.__doc__
        DEFECTS[cls.__doc__] = cls

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        xh = (values - column(mean, x)) * column(self.scale(var.to(values.dtype)), x)
        weight, bias = (each.to(values.dtype) for each in (self.weight, self.bias))
        return self.combine(xh, column(weight, x), column(bias, x))

    def combine(self, xh: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return xh * weight + bias


class BiasedRunningVariance(Plain):
    """running_var takes the biased variance"""

    def unbias(self, n: int) -> float:
        return 1


class UnbiasedNormalisation(Plain):
    """normalises with the unbiased variance"""

    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        n = values.numel() // values.shape[1]
        return super().var(values, mean, dims) * n / (n - 1)

    def unbias(self, n: int) -> float:
        return 1


class EpsOutsideTheRoot(Plain):
    """adds eps outside the root"""

    def scale(self, var: Tensor) -> Tensor:
        return 1 / (var.sqrt() + self.eps)


class EpsTenfold(Plain):
    """eps is 10 times too large"""

    def scale(self, var: Tensor) -> Tensor:
        return (var + 10 * self.eps).rsqrt()


class EpsInTheRunningVariance(Plain):
    """running_var takes var + eps"""

    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        super().track(mean, var + self.eps, n)


class MomentumOfTheOld(Plain):
    """momentum weighs the old value"""

    def factor(self) -> float:
        return 1 - super().factor()


class MomentumTwice(Plain):
    """updates its statistics twice"""

    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        super().track(mean, var, n)
        super().track(mean, var, n)


class OnePassVariance(Plain):
    """variance is mean(x^2) - mean^2"""

    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        return (values.square().mean(dims) - mean.square()).clamp(min=0)


class MeanInBfloat16(Plain):
    """mean is rounded to bfloat16"""

    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return super().mean(values, dims).bfloat16().to(values.dtype)


class MeanWithoutTheTail(Plain):
    """mean leaves out the last value where n is not a multiple of 8"""

    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        n = values.numel() // values.shape[1]
        last = values.transpose(0, 1).flatten(1)[:, -1]
        return super().mean(values, dims) - (last / n if n % 8 else 0)


class RunningMeanInFloat16(Plain):
    """running_mean is rounded to float16"""

    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        super().track(mean, var, n)
        self.running_mean.copy_(self.running_mean.half())


class GradientWithoutTheMean(Plain):
    """input gradient lacks the mean of g"""

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        return super().affine_map(x, values, mean.detach(), var)


class GradientWithoutTheVariance(Plain):
    """input gradient lacks the term of xh"""

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        return super().affine_map(x, values, mean, var.detach())


class GradientOfUnbiasedVariance(Plain):
    """input gradient has n - 1 for n in the term of xh"""

    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        n = values.numel() // values.shape[1]
        var = super().var(values, mean, dims)
        var.register_hook(lambda grad: grad * n / (n - 1))
        return var


class ParameterGradientsInBfloat16(Plain):
    """gradients of weight and bias go through bfloat16"""

    def combine(self, xh: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        for each in (weight, bias):
            each.register_hook(lambda grad: grad.bfloat16().to(grad.dtype))
        return super().combine(xh, weight, bias)


class BiasBeforeScale(Plain):
    """adds the bias before it scales"""

    def combine(self, xh: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (xh + bias) * weight
