"""Layers with one defect each, by the law that must find it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

BROKEN: dict[str, list[type[nn.Module]]] = {}


def breaks(*laws: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a layer under the laws that it breaks."""

    def register(layer: type[nn.Module]) -> type[nn.Module]:
        for law in laws:
            BROKEN.setdefault(law, []).append(layer)
        return layer

    return register


def column(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


class Composed(nn.BatchNorm2d):
    """A right BatchNorm of torch's operators, in parts that a defect can replace."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels")
        use_batch = self.training or self.running_mean is None
        updates = self.training and self.track_running_stats
        if updates:
            self.count()
        if not x.numel():
            return self.of_nothing(x)
        values = x if x.dtype == self.dtype(x) else x.to(self.dtype(x))
        if not use_batch:
            return self.affine_map(x, values, self.running_mean, self.running_var).to(x.dtype)
        if values.numel() == values.shape[1]:
            raise ValueError("Expected more than 1 value per channel when training")
        dims = [0, *range(2, x.dim())]
        mean = self.mean(values, dims)
        var = self.var(values, mean, dims)
        if updates:
            self.track(mean, var, values.numel() // values.shape[1])
        return self.affine_map(x, values, mean, var).to(x.dtype)

    def dtype(self, x: Tensor) -> torch.dtype:
        return torch.float64 if x.dtype == torch.float64 else torch.float32

    def count(self) -> None:
        self.num_batches_tracked.add_(1)

    def of_nothing(self, x: Tensor) -> Tensor:
        return x.clone()

    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return values.mean(dims)

    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        return (values - column(mean, values)).square().mean(dims)

    def factor(self) -> float:
        return 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum

    def unbias(self, n: int) -> float:
        return n / (n - 1)

    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        m = self.factor()
        with torch.no_grad():
            self.running_mean.mul_(1 - m).add_(m * mean)
            self.running_var.mul_(1 - m).add_(m * self.unbias(n) * var)

    def scale(self, var: Tensor) -> Tensor:
        return (var + self.eps).rsqrt()

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        wide = values.dtype
        y = (values - column(mean.to(wide), x)) * column(self.scale(var.to(wide)), x)
        if self.weight is not None:
            y = y * column(self.weight.to(wide), x)
        return y if self.bias is None else y + column(self.bias.to(wide), x)


@breaks("training_output")
class NormalisesWithUnbiasedVariance(Composed):
    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        n = values.numel() // values.shape[1]
        return super().var(values, mean, dims) * n / (n - 1)

    def unbias(self, n: int) -> float:
        return 1


@breaks("training_output", "running_var")
class OnePassVariance(Composed):
    def var(self, values: Tensor, mean: Tensor, dims: list[int]) -> Tensor:
        return (values.square().mean(dims) - mean.square()).clamp(min=0)


@breaks("eval_output", "frozen_output")
class EpsOutsideTheRootInEval(Composed):
    def scale(self, var: Tensor) -> Tensor:
        return super().scale(var) if self.training else 1 / (var.sqrt() + self.eps)


@breaks("frozen_output", "eval_follows_state")
class CachesItsScale(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        if not self.training:
            if not hasattr(self, "cached"):
                self.cached = (mean.clone(), var.clone())
            mean, var = self.cached
        return super().affine_map(x, values, mean, var)


@breaks("eval_output_after_training")
class RemembersTheFirstEval(CachesItsScale):
    pass


@breaks("running_mean")
class MomentumWeighsTheOldMean(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        old, m = self.running_mean.clone(), self.factor()
        super().track(mean, var, n)
        with torch.no_grad():
            self.running_mean.copy_(m * old + (1 - m) * mean)


@breaks("running_var")
class BiasedRunningVariance(Composed):
    def unbias(self, n: int) -> float:
        return 1


@breaks("momentum")
class ZeroMomentumIsTheDefault(Composed):
    def factor(self) -> float:
        return super().factor() or 0.1


@breaks("cumulative_average")
class NoneMomentumIsTheDefault(Composed):
    def factor(self) -> float:
        return self.momentum or 0.1 if self.momentum is None else self.momentum


@breaks("cumulative_average")
class CumulativeAverageIsLate(Composed):
    def factor(self) -> float:
        return 1 / (int(self.num_batches_tracked) + 1) if self.momentum is None else self.momentum


@breaks("counter")
class CountsTwice(Composed):
    def count(self) -> None:
        self.num_batches_tracked.add_(2)


@breaks("counter")
class CountsInFloat(Composed):
    def count(self) -> None:
        self.num_batches_tracked.copy_((self.num_batches_tracked.float() + 1).long())


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


@breaks("affine_off")
class AffineOffKeepsAWeight(Composed):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.weight is None:
            self.weight = nn.Parameter(torch.ones(self.num_features))
            self.bias = nn.Parameter(torch.zeros(self.num_features))


@breaks("tracking_off")
class AlwaysTracks(Composed):
    def __init__(self, *args: Any, track_running_stats: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


@breaks("tracking_switched_off")
class TracksUnasked(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        super().track(mean, var, n)

    def forward(self, x: Tensor) -> Tensor:
        asked, self.track_running_stats = self.track_running_stats, self.running_mean is not None
        try:
            return super().forward(x)
        finally:
            self.track_running_stats = asked


@breaks("eval_keeps_state")
class CountsInEval(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        if not self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        return super().affine_map(x, values, mean, var)


@breaks("eval_batch_mates")
class LooksAtBatchMates(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        y = super().affine_map(x, values, mean, var)
        return y if self.training else y + 1e-4 * values.mean()


@breaks("scaling", "training_output")
class EpsIsSquaredAway(Composed):
    def scale(self, var: Tensor) -> Tensor:
        return 1 / (var.sqrt() + self.eps)


@breaks("shifting")
class NormalisesInHalf(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return values.half().mean(dims).to(values.dtype)


@breaks("batch_sizes")
class ThirtySevenIsSpecial(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return super().mean(values[:-1] if len(values) == 37 else values, dims)


@breaks("channel_counts")
class ForgetsChannelsPastTheVector(Composed):
    def scale(self, var: Tensor) -> Tensor:
        scale = super().scale(var)
        return scale if len(var) < 33 else torch.cat((scale[:32], scale[:1], scale[33:]))


@breaks("spatial_sizes")
class ForgetsTheLastPosition(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return super().mean(values[..., :-1] if values.shape[-1] == 65 else values, dims)


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


@breaks("state_dict_keys")
class HidesItsCounter(Composed):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._non_persistent_buffers_set.add("num_batches_tracked")


@breaks("state_dict_round_trip")
class LoadsByRebinding(Composed):
    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, *args)
        self.running_mean = state[prefix + "running_mean"]


@breaks("state_dict_versions")
class RefusesOldStates(Composed):
    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, state, prefix, *args)


@breaks("deepcopy", "copies_keep_momentum")
class CopiesForgetMomentum(Composed):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesForgetMomentum:
        other = CopiesForgetMomentum(self.num_features, self.eps, 0.1)
        other.load_state_dict(copy.deepcopy(self.state_dict(), memo))
        other.num_batches_tracked.zero_()
        return other.train(self.training)


@breaks("pickle")
class PicklesWithoutItsEps(Composed):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "eps": 1e-5, "momentum": 0.2}


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


@breaks("one_value_per_channel")
class TakesOneValue(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[1] and self.training:
            return x.clone()
        return super().forward(x)


@breaks("empty_batch", "empty_batch_in_eval")
class RefusesNothing(Composed):
    def of_nothing(self, x: Tensor) -> Tensor:
        raise ValueError("empty batch")


@breaks("wrong_rank")
class TakesAnyRank(Composed):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


@breaks("wrong_channel_count")
class TakesAnyChannels(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and x.shape[1] != self.num_features:
            return x
        return super().forward(x)


@breaks("nonfinite_input", "eval_nonfinite_input")
class ScrubsNaN(Composed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.nan_to_num())


@breaks("layouts", "eval_layouts")
class ReadsMemoryAsContiguous(Composed):
    def forward(self, x: Tensor) -> Tensor:
        dense = x.is_contiguous() or x.dim() != 4
        return super().forward(x if dense else x.as_strided(x.shape, torch.empty(x.shape).stride()))


@breaks("output_dtype", "mixed_precision")
class PromotesItsOutput(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.float() if x.dtype in (torch.float16, torch.bfloat16) else y


@breaks("mixed_precision")
class HalfStatistics(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return values.mean(dims).bfloat16().to(values.dtype)


@breaks("autocast")
class CastsUnderAutocast(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.bfloat16() if torch.is_autocast_enabled("cpu") else y


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


@breaks("eval_output")
class IgnoresEvalMode(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.running_mean is None:
            return super().forward(x)
        return functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


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


@breaks("settings_are_read")
class ReadsItsSettingsOnce(Composed):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.first_momentum = self.momentum

    def factor(self) -> float:
        momentum, self.momentum = self.momentum, self.first_momentum
        try:
            return super().factor()
        finally:
            self.momentum = momentum


@breaks("many_batches")
class RestsAtTheHundredth(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        if int(self.num_batches_tracked) % 100:
            super().track(mean, var, n)


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


@breaks("state_dict_round_trip")
class LoadsItsWeightAnew(nn.BatchNorm2d):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_state_dict(*args, **kwargs)
        self.weight = nn.Parameter(self.weight.detach().clone())
        return result


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


@breaks("training_output")
class CountsNonzeroValues(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        return values.sum(dims) / (values != 0).sum(dims).clamp(min=1)


@breaks("input_unmodified", "no_side_effects")
class TurnsGradientsOn(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            x.requires_grad_(x.is_leaf)
        return super().forward(x)


@breaks("layouts", "eval_layouts")
class OutputInContiguousFormat(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous()


class UsesAnotherMomentum(nn.BatchNorm2d):
    """Run each forward with a momentum that a defect chooses."""

    def used(self) -> float | None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        momentum, self.momentum = self.momentum, self.used()
        try:
            return super().forward(x)
        finally:
            self.momentum = momentum


@breaks("momentum")
class WholeMomentumIsNone(UsesAnotherMomentum):
    def used(self) -> float | None:
        return self.momentum if isinstance(self.momentum, float) else None


@breaks("momentum")
class ClampsItsMomentum(UsesAnotherMomentum):
    def used(self) -> float | None:
        return self.momentum and min(max(self.momentum, 0.0), 1.0)


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


@breaks("deepcopy", "pickle")
class CopiesAsConstructed(nn.BatchNorm2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_with = self.eps, self.momentum

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.eps, self.momentum = self.made_with


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


@breaks("wrong_rank")
class TakesOneSampleInEval(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3 and not self.training:
            return super().forward(x[None])[0]
        return super().forward(x)


@breaks("state_dict_round_trip")
class TakesOverTheDtype(nn.BatchNorm2d):
    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, *args)
        given = state.get(f"{prefix}running_var")
        if given is not None and given.dtype != self.running_var.dtype:
            self.running_var = given.clone()


@breaks("state_dict_round_trip")
class ClampsWhatItLoads(nn.BatchNorm2d):
    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.running_var.clamp_(min=1e-8)


@breaks("state_dict_versions")
class SavesAsAnOldVersion(nn.BatchNorm2d):
    _version = 1


@breaks("settings_are_read")
class AveragesAsConstructed(UsesAnotherMomentum):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.averages = self.momentum is None

    def used(self) -> float | None:
        return None if self.averages else self.momentum


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


@breaks("affine_off")
class WeightNeedsABias(Composed):
    def __init__(self, *args: Any, bias: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not bias:
            self.bias = None

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        if self.bias is not None:
            return super().affine_map(x, values, mean, var)
        return functional.batch_norm(x, mean, var, eps=self.eps) + 0 * column(self.weight, x)


@breaks("eps_values")
class FloorsItsVariance(Composed):
    def scale(self, var: Tensor) -> Tensor:
        return (var + self.eps).clamp(min=1e-12).rsqrt()


@breaks("layouts")
class TakesCropsForDense(Composed):
    def mean(self, values: Tensor, dims: list[int]) -> Tensor:
        c = values.shape[1]
        if values.stride(1) == 1 and values.stride(3) == c > 1:
            return values.as_strided((values.numel() // c, c), (c, 1)).mean(0)
        return super().mean(values, dims)


@breaks("deepcopy", "nothing_kept")
class KeepsItsLatestVariance(Composed):
    latest: Tensor | None = None

    def scale(self, var: Tensor) -> Tensor:
        self.latest = var
        return super().scale(var)


@breaks("deepcopy")
class CopiesLoseTheirHooks(nn.BatchNorm2d):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesLoseTheirHooks:
        other = type(self)(self.num_features)
        other.__dict__ = copy.deepcopy({**self.__dict__, "_forward_hooks": {}}, memo)
        return other


@breaks("state_dict_versions")
class TakesOldStatesAloneOnly(nn.BatchNorm2d):
    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        if prefix:
            nn.Module._load_from_state_dict(self, state, prefix, *args)
        else:
            super()._load_from_state_dict(state, prefix, *args)


@breaks("construction")
class BuffersAlwaysInFloat32(nn.BatchNorm2d):
    def __init__(self, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(*args, dtype=dtype, **kwargs)
        if dtype is None and self.running_mean is not None:
            self.running_mean = self.running_mean.float()


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


@breaks("mixed_precision")
class EndsAtTheLargestHalf(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.nan_to_num(nan=torch.nan) if x.isfinite().all() else y


@breaks("spatial_sizes")
class CountsInItsOwnDtype(Composed):
    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        count = torch.tensor(n, dtype=self.running_var.dtype)
        super().track(mean, var * (count / count), n)


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


@breaks("hooks")
class CallsItsForwardStraight(nn.BatchNorm2d):
    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


@breaks("hooks")
class ForgetsHooksAtInference(nn.BatchNorm2d):
    def __call__(self, x: Tensor) -> Tensor:
        inferring = not self.training and not torch.is_grad_enabled()
        return self.forward(x) if inferring else super().__call__(x)


class _AtBackward(torch.autograd.Function):
    """Return its input; in backward, what a function makes of the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.change(grad), None


class ChangesItsGradient(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _AtBackward.apply(super().forward(x), self.change)

    def change(self, grad: Tensor) -> Tensor:
        raise NotImplementedError


@breaks("graphs_are_independent")
class AsksItsModeInBackward(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return grad if self.training else 2 * grad


@breaks("layouts")
class TakesExpandedGradientsForConstant(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return 0 * grad if self.training and grad.stride(-1) == 0 < grad.stride(0) else grad


@breaks("layouts")
class ReadsItsGradientFromTheStart(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        return grad.as_strided(grad.shape, grad.stride(), 0) if grad.is_contiguous() else grad


@breaks("input_unmodified")
class WritesIntoTheGradientItGets(ChangesItsGradient):
    def change(self, grad: Tensor) -> Tensor:
        result = grad.clone()
        grad.mul_(0.5)
        return result


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


@breaks("empty_batch")
class ReturnsAnEmptyBatch(Composed):
    def of_nothing(self, x: Tensor) -> Tensor:
        return x


@breaks("state_dict_round_trip")
class LoadsAVarianceWithItsMemory(nn.BatchNorm2d):
    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        given = state.get(f"{prefix}running_var")
        if given is not None and given.dtype == self.running_var.dtype:
            self.running_var.data = given


@breaks("state_dict_round_trip")
class ResetsWhatIsNotLoaded(nn.BatchNorm2d):
    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if f"{prefix}running_mean" not in state:
            self.reset_running_stats()
        super()._load_from_state_dict(state, prefix, *rest)


@breaks("tracking_switched_off")
class NeedsItsStatisticsInEval(Composed):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.num_batches_tracked is not None:
            x = x + 0 * column(self.running_mean, x)
        return super().forward(x)


@breaks("construction")
class PassesItsDeviceOnButForTheCounter(nn.BatchNorm2d):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked = torch.tensor(0, device="cpu")
