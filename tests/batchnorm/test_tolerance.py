"""The bounds held against correct layers, which must keep to them, and wrong ones, which must not.

docs/tolerance.md derives the bounds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm import expectation
from pytest_bninvariants.batchnorm.arithmetic import (
    TINY,
    UNIT,
    Arithmetic,
    cascade_depth,
    gamma,
    sum_depth,
)
from pytest_bninvariants.batchnorm.cases import DENSE, LAYOUTS, Batch, Case
from pytest_bninvariants.batchnorm.expectation import BatchExpectation, BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.reference import (
    ReferenceBatchNorm,
    Statistics,
    batch_statistics,
    rows,
)
from pytest_bninvariants.batchnorm.tolerance import normalisation_bounds, statistics_bounds

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
PRECISIONS = {  # dtype of the input, dtype of the state, largest kappa
    "float64": (F64, F64, 1e6),
    "float32": (F32, F32, 1e4),
    "bfloat16": (BF16, BF16, 5.0),
    "float16": (F16, F16, 30.0),
    "bfloat16 in float32": (BF16, F32, 5.0),
    "float16 in float32": (F16, F32, 30.0),
}
SHAPES = (
    (2, 3), (3, 2), (5, 4), (20, 3), (65, 2), (257, 1), (1025, 2),
    (2, 3, 1), (4, 2, 5), (1, 3, 33), (65, 4, 17),
    (2, 3, 1, 1), (1, 3, 5, 7), (2, 8, 2, 2), (8, 3, 4, 4), (33, 2, 5, 7), (1, 2, 64, 65),
    (2, 3, 1, 1, 2), (3, 4, 3, 4, 5),
)  # fmt: skip
Results = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One layer and one batch."""

    batch: Batch
    state: torch.dtype = F32
    eps: float = 1e-5
    momentum: float = 0.1
    plain: bool = False

    @property
    def x(self) -> Tensor:
        return self.batch.tensor()

    @property
    def g(self) -> Tensor:
        if self.plain:
            return torch.ones_like(self.x)
        generator = torch.Generator().manual_seed(self.batch.seed + 1)
        drawn = torch.randn(self.batch.shape, generator=generator)
        # torch rounds in half, in between, where the two lie differently and the input is half
        return torch.empty_like(self.x).copy_(drawn)

    def prepare(self, layer: nn.Module) -> None:
        """Give a layer a state that was not made for it, in the state's dtype."""
        generator = torch.Generator().manual_seed(self.batch.seed + 2)
        drawn = torch.randn((4, self.batch.shape[1]), generator=generator).to(self.state)
        values = dict(zip(("weight", "bias", "running_mean"), drawn, strict=False))
        values["running_var"] = drawn[3].exp()
        for name, value in values.items():
            tensor = getattr(layer, name)
            tensor.data = value.to(tensor.dtype).clone()


class Composed(nn.BatchNorm1d):
    """A BatchNorm of any rank out of single operations; its hooks are where defects go."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        return x.mean(axes), x.var(axes, correction=0)

    def unbiased(self, var: Tensor, n: int) -> Tensor:
        return var * (n / (n - 1))

    def epsilon(self) -> float:
        return self.eps

    def normalise(self, x: Tensor, mean: Tensor, var: Tensor, shape: list[int]) -> Tensor:
        xh = (x - mean.view(shape)) * (var + self.epsilon()).rsqrt().view(shape)
        return xh * self.weight.view(shape) + self.bias.view(shape)

    def forward(self, input: Tensor) -> Tensor:
        axes, shape = [0, *range(2, input.dim())], [1, -1] + [1] * (input.dim() - 2)
        inner = input.to(torch.promote_types(input.dtype, self.weight.dtype))
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            mean, var = self.running_mean, self.running_var
        else:
            mean, var = self.statistics(inner, axes)
            m, n = self.momentum or 0.0, input.numel() // input.shape[1]
            with torch.no_grad():
                unbiased = self.unbiased(var.detach(), n)
                self.running_mean.mul_(1 - m).add_(m * mean.detach().to(self.running_mean.dtype))
                self.running_var.mul_(1 - m).add_(m * unbiased.to(self.running_var.dtype))
        return self.normalise(inner, mean, var, shape).to(input.dtype)


def torchs(channels: int, setting: Setting) -> nn.Module:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    made = kinds[len(setting.batch.shape)](channels, eps=setting.eps, momentum=setting.momentum)
    return made.to(setting.state)


def composed(channels: int, setting: Setting) -> nn.Module:
    return Composed(channels, eps=setting.eps, momentum=setting.momentum).to(setting.state)


Make = Callable[[int, Setting], nn.Module]


def results(make: Make, setting: Setting, *, training: bool = True) -> Results:
    layer = make(setting.batch.shape[1], setting).train(training)
    setting.prepare(layer)
    x = setting.x.detach().requires_grad_()
    y = layer(x)
    y.backward(setting.g)
    assert x.grad is not None
    found = {"output": y.detach(), "input": x.grad}
    found |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    return found | {name: buffer for name, buffer in layer.named_buffers() if buffer.dim()}


def twin_of(setting: Setting, *, training: bool = True) -> ReferenceTwin:
    reference = ReferenceBatchNorm(
        setting.batch.shape[1], eps=setting.eps, momentum=setting.momentum
    ).train(training)
    setting.prepare(reference)
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(reference, name)
        tensor.data = tensor.data.double()
    return ReferenceTwin(reference, Arithmetic.for_dtypes(setting.x.dtype, setting.state))


def truth(
    setting: Setting, *, training: bool = True
) -> tuple[BatchExpectation, dict[str, BoundedValue]]:
    twin = twin_of(setting, training=training)
    expected = twin.expect(setting.x)
    gradients = dict(zip(("input", "weight", "bias"), expected.gradients(setting.g), strict=True))
    return expected, {
        "output": expected.output,
        "running_mean": twin.running_mean,
        "running_var": twin.running_var,
        **gradients,
    }


def excess(make: Make, setting: Setting, *, training: bool = True) -> dict[str, float]:
    """Return the largest error over bound of each result, where there is a bound."""
    _, expected = truth(setting, training=training)
    ratios = {}
    for name, got in results(make, setting, training=training).items():
        value, bound = expected[name]
        assert not bound.isnan().any(), (name, setting)
        error = (got.double() - value).abs()
        overflown = got.isinf() & (value.abs() + bound > torch.finfo(got.dtype).max)
        ratio = torch.where((error == 0) | overflown | bound.isinf(), 0.0, error / bound)
        ratios[name] = float(ratio.nan_to_num(nan=math.inf).max())
    return ratios


def settings_of(precision: str, count: int, seed: int = 0) -> Iterator[Setting]:
    """Yield seeded settings that a precision can serve."""
    dtype, state, kappa = PRECISIONS[precision]
    chance = random.Random(f"{precision} {seed}")
    kappas = [k for k in (0.0, 1.0, 10.0, 30.0, 1e2, 1e3, 1e4, 1e5, 1e6) if k <= kappa]
    for _ in range(count):
        shape = chance.choice(SHAPES)
        # torch itself rounds gradients to half in between where input and layer differ in dtype and
        # the input is not dense; in float16 (var + eps)^-3/2 must not overflow
        layouts = set(LAYOUTS if dtype is state else DENSE)
        if len(shape) < 4:
            layouts -= {"channels_last", "cropped"}
        sigmas = (1.0, 4.0, 0.5) if state is F16 else (1.0, 0.05, 30.0, 0.003)
        usual = (1e-5, 1e-3, 0.1) if dtype is F16 else (1e-5, 1e-3, 1e-8)
        eps = chance.choice((1e-3, 1e-2, 0.1) if state is F16 else usual)
        yield Setting(
            batch=Batch(
                shape=shape,
                seed=chance.randrange(2**16),
                sigma=chance.choice(sigmas),
                kappa=chance.choice(kappas),
                layout=chance.choice(sorted(layouts)),
                dtype=str(dtype).removeprefix("torch."),
            ),
            state=state,
            eps=eps,
            momentum=chance.choice((0.1, 0.0, 1.0, 0.3)),
            plain=chance.random() < 0.3,
        )


EASY = Setting(batch=Batch(shape=(20, 3)))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", [torchs, composed])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_correct_layers_keep_to_the_bounds(precision: str, make: Make, training: bool) -> None:
    for setting in settings_of(precision, 25 if training else 10):
        ratios = excess(make, setting, training=training)
        assert max(ratios.values()) <= 1, (ratios, setting)


@pytest.mark.parametrize("make", [torchs, composed])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bounds_hold_over_many_batches_of_one_layer(precision: str, make: Make) -> None:
    dtype, state, _ = PRECISIONS[precision]
    name = str(dtype).removeprefix("torch.")
    setting = Setting(batch=Batch(shape=(16, 3), dtype=name), state=state)
    layer = make(3, setting).train()
    setting.prepare(layer)
    twin = twin_of(setting)
    for seed in range(30):
        x = replace(setting.batch, seed=seed).tensor()
        training = seed % 4 != 3
        layer.train(training)
        twin.reference.train(training)
        y, expected = layer(x).detach().double(), twin.expect(x)
        for got, (value, bound) in (
            (y, expected.output),
            (layer.running_mean, twin.running_mean),
            (layer.running_var, twin.running_var),
        ):
            assert isinstance(got, Tensor)
            assert (got.double() - value).abs().le(bound).all(), seed
            assert bound.isfinite().all() or (got is y and dtype is BF16)


class Biased(Composed):
    def unbiased(self, var: Tensor, n: int) -> Tensor:
        return var


class LargeEps(Composed):
    def epsilon(self) -> float:
        return self.eps * 1.5


class HalfStatistics(Composed):
    def statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x.half(), axes)
        return mean.to(x.dtype), var.to(x.dtype)


class DetachedVariance(Composed):
    def statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x, axes)
        return mean, var.detach()


class DetachedMean(Composed):
    def statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x, axes)
        return mean.detach(), var


class OnePass(Composed):
    def statistics(self, x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        mean = x.mean(axes)
        return mean, (x.square().mean(axes) - mean.square()).clamp(min=0)


def planted(defect: type[Composed]) -> Make:
    def make(channels: int, setting: Setting) -> nn.Module:
        return defect(channels, eps=setting.eps, momentum=setting.momentum).to(setting.state)

    return make


def varied(setting: Setting, **batch: object) -> list[Setting]:
    """Return settings for ten seeds."""
    made = replace(setting.batch, **batch)  # type: ignore[arg-type]
    return [replace(setting, batch=replace(made, seed=seed)) for seed in range(10)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_biased_running_variance_exceeds_its_bound_at_20_values(dtype: str) -> None:
    state = F64 if dtype == "float64" else F32
    for setting in varied(replace(EASY, state=state), dtype=dtype):
        ratios = excess(planted(Biased), setting)
        assert ratios.pop("running_var") > 1
        assert max(ratios.values()) <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_and_a_half_times_eps_exceeds_the_bounds_where_the_variance_is_near_eps(
    precision: str,
) -> None:
    dtype, state, _ = PRECISIONS[precision]
    name = str(dtype).removeprefix("torch.")
    setting = replace(EASY, eps=1e-3, state=state)
    for each in varied(setting, sigma=1e-3**0.5, shape=(64, 2), dtype=name):
        assert excess(planted(LargeEps), each)["output"] > 1


def test_statistics_in_float16_exceed_the_bounds_of_a_float32_layer() -> None:
    for setting in varied(EASY, kappa=1.0):
        ratios = excess(planted(HalfStatistics), setting)
        assert ratios["output"] > 1
        assert ratios["running_mean"] > 1
        assert ratios["running_var"] > 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_without_the_term_of_the_variance_exceeds_its_bound(precision: str) -> None:
    dtype, state, _ = PRECISIONS[precision]
    name = str(dtype).removeprefix("torch.")
    for setting in varied(replace(EASY, state=state), dtype=name):
        ratios = excess(planted(DetachedVariance), setting)
        assert ratios.pop("input") > 1
        assert max(ratios.values()) <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_without_the_term_of_the_mean_exceeds_its_bound(precision: str) -> None:
    dtype, state, _ = PRECISIONS[precision]
    name = str(dtype).removeprefix("torch.")
    for setting in varied(replace(EASY, state=state), dtype=name):
        assert excess(planted(DetachedMean), setting)["input"] > 1


def test_a_variance_as_a_difference_of_squares_exceeds_the_bounds_at_kappa_1000() -> None:
    for setting in varied(EASY, kappa=1e3, shape=(20, 3)):
        expected, _ = truth(setting)
        assert expected.bounds.posed.all()
        assert excess(planted(OnePass), setting)["running_var"] > 1


def test_bounds_of_the_plain_case_are_within_a_hundred_roundings_of_its_dtype() -> None:
    for dtype, state in ((F64, F64), (F32, F32)):
        name = str(dtype).removeprefix("torch.")
        setting = replace(EASY, batch=replace(EASY.batch, dtype=name), state=state)
        _, expected = truth(setting)
        for result, (value, bound) in expected.items():
            size = value.abs().max()
            assert (bound <= 1000 * UNIT[dtype] * (1 + size)).all(), result
            assert (bound > 0).all(), result


def flagged(var: float, dvar: float, eps: float) -> bool:
    """Return whether a channel with this variance and bound is ill-posed."""
    one = torch.ones(1, dtype=F64)
    a = Arithmetic.for_dtypes(F32, F32)
    bounds = normalisation_bounds(
        Statistics(0 * one, var * one), Statistics(one, dvar * one), eps, a
    )
    assert bounds.scale.isfinite().all()
    return not bool(bounds.posed)


@pytest.mark.parametrize("var", [0.0, 1e-12, 0.75, 3e4])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.25])
def test_a_channel_is_ill_posed_exactly_from_half_of_its_variance_and_eps(
    var: float, eps: float
) -> None:
    edge = (var + eps) / 2
    assert flagged(var, edge, eps)
    assert flagged(var, math.nextafter(edge, math.inf), eps)
    assert flagged(var, 1e30, eps)
    assert not flagged(var, math.nextafter(edge, 0.0), eps)
    assert not flagged(var, 0.0, eps)


def test_without_variance_and_eps_a_channel_is_ill_posed() -> None:
    assert flagged(0.0, 0.0, 0.0)


def test_an_ill_posed_channel_has_no_bound_of_what_its_scale_is_in() -> None:
    batch = Batch(shape=(20, 3), sigma=1e-3, kappa=1e6)
    setting = Setting(batch=batch, eps=1e-8)
    expected, bounds = truth(setting)
    assert not expected.bounds.posed.any()
    for name in ("output", "input", "weight"):
        assert bounds[name].bound.isposinf().all()
    for name in ("bias", "running_mean", "running_var"):
        assert bounds[name].bound.isfinite().all()


def test_ill_posed_channels_leave_the_others_their_bounds() -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 1e4 + 1e-3 * x[:, 0]
    twin = ReferenceTwin(ReferenceBatchNorm(2, eps=1e-8), Arithmetic.for_dtypes(F32, F32))
    expected = twin.expect(x)
    assert expected.bounds.posed.tolist() == [False, True]
    assert expected.output.bound[:, 0].isposinf().all()
    assert (expected.output.bound[:, 1] < 1e-4).all()


@pytest.mark.parametrize("unit", UNIT.values())
def test_gamma_is_infinite_from_where_its_roundings_reach_1(unit: float) -> None:
    assert gamma(0, unit) == 0
    assert gamma(1, unit) == unit / (1 - unit)
    assert gamma(1 / unit, unit) == math.inf
    assert gamma(2 / unit, unit) == math.inf
    assert 1 / unit - 1 <= gamma(1 / unit - 1, unit) * 1.01 < math.inf
    values = [gamma(k, unit) for k in range(1, 200, 7)]
    assert values == sorted(values)
    assert all(gamma(k, unit) >= k * unit for k in range(1, 200, 7))


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, None])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_a_sum_too_deep_for_its_precision_has_no_bound_and_never_nan(
    fill: float, momentum: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.full((8, 2), fill, dtype=F16)
    twin = ReferenceTwin(ReferenceBatchNorm(2, momentum=momentum), Arithmetic.for_dtypes(F16, F16))
    monkeypatch.setattr(expectation, "sum_depth", lambda *args, **kwargs: 2**24)
    expected = twin.expect(x)
    found = [expected.output, *expected.gradients(fill * x), twin.running_mean, twin.running_var]
    assert all(each.bound.isposinf().all() for each in found)

    twin.reference.eval()
    for each in (twin.expect(x).output, *twin.expect(x).gradients(fill * x)):
        assert each.bound.isposinf().all()

    fresh = ReferenceTwin(ReferenceBatchNorm(2).eval(), Arithmetic.for_dtypes(F16, F16)).expect(x)
    of_input, of_weight, of_bias = fresh.gradients(fill * x)
    assert fresh.output.bound.isfinite().all()
    assert of_input.bound.isfinite().all()
    assert of_weight.bound.isposinf().all()
    assert of_bias.bound.isposinf().all()


def in_precision(precision: str) -> dict[str, BoundedValue]:
    """Return the bounds of one and the same batch, whose values are in bfloat16 and float16."""
    dtype, state, _ = PRECISIONS[precision]
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)
    g = torch.randn(16, 3, generator=torch.Generator().manual_seed(2)).bfloat16().to(dtype)
    twin = ReferenceTwin(ReferenceBatchNorm(3), Arithmetic.for_dtypes(dtype, state))
    expected = twin.expect(x)
    of_input, of_weight, of_bias = expected.gradients(g)
    return {
        "output": expected.output,
        "mean": twin.running_mean,
        "var": twin.running_var,
        "input": of_input,
        "weight": of_weight,
        "bias": of_bias,
    }


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("float64", "float32"),
        ("float32", "float16"),
        ("float32", "bfloat16"),
        ("float16", "bfloat16"),
        ("float16 in float32", "float16"),
        ("bfloat16 in float32", "bfloat16"),
    ],
)
def test_a_wider_dtype_has_smaller_bounds(wide: str, narrow: str) -> None:
    loose = in_precision(narrow)
    for name, (_, bound) in in_precision(wide).items():
        assert (bound < loose[name].bound).all(), name


@pytest.mark.parametrize("half", [F16, BF16])
def test_only_a_layer_whose_tensors_are_all_half_may_compute_in_half(half: torch.dtype) -> None:
    all_half, mixed = Arithmetic.for_dtypes(half, half), Arithmetic.for_dtypes(half, F32)
    assert (all_half.unit, all_half.sum_unit) == (UNIT[half], UNIT[F32])
    assert (mixed.unit, mixed.sum_unit) == (UNIT[F32], UNIT[F32])
    value = torch.ones(1, dtype=F64)
    assert mixed.storing_error(value, half) == UNIT[half] + TINY[half]
    assert mixed.storing_error(value, F32) == TINY[F32]


def test_float64_anywhere_asks_for_float64() -> None:
    for pair in ((F64, F64), (F32, F64), (F64, F32), (BF16, F64)):
        assert Arithmetic.for_dtypes(*pair).unit == UNIT[F64]
        assert Arithmetic.for_dtypes(*pair).sum_unit == UNIT[F64]


def test_the_error_of_the_reference_is_added() -> None:
    bound = torch.ones(1, dtype=F64)
    assert Arithmetic.for_dtypes(F64, F64).with_reference_error(bound) == 2
    assert Arithmetic.for_dtypes(F32, F32).with_reference_error(bound) == 1 + 2.0**-29


@pytest.mark.parametrize("dtype", [F64, F16, BF16])
@pytest.mark.parametrize("rowwise", [True, False])
def test_the_depth_on_the_cpu_is_the_number_of_values_but_in_float32(
    dtype: torch.dtype, rowwise: bool
) -> None:
    assert sum_depth(7, 11, dtype, "cpu", rowwise=rowwise, threads=4) == 78


def test_the_depth_of_float32_counts_samples_where_positions_lie_side_by_side() -> None:
    assert sum_depth(7, 11, F32, "cpu", rowwise=True, threads=4) == 7 + 11 + 4
    assert sum_depth(7, 10**6, F32, "cpu", rowwise=True, threads=4) == 7 + 4 * 64 + 32 + 4


def test_the_depth_of_float32_is_shared_among_threads_where_channels_lie_side_by_side() -> None:
    assert sum_depth(1000, 1000, F32, "cpu", rowwise=False, threads=4) == 250_001 + 4
    assert sum_depth(1000, 1000, F32, "cpu", rowwise=False, threads=1) == 1_000_001 + 1
    assert sum_depth(10, 1, F32, "cpu", rowwise=False, threads=8) == 10 + 8


def test_the_depth_on_a_gpu_is_a_warps_share_and_a_tree() -> None:
    for dtype in UNIT:
        for rowwise in (True, False):
            assert sum_depth(64, 100, dtype, "cuda", rowwise=rowwise, threads=4) == 200 + 16


def test_depths_grow_with_the_number_of_values() -> None:
    sizes = [2**k for k in range(25)]
    for device in ("cpu", "cuda"):
        for dtype in UNIT:
            for rowwise in (True, False):
                depths = [sum_depth(1, n, dtype, device, rowwise=rowwise, threads=2) for n in sizes]
                assert depths == sorted(depths)
                assert all(depth >= 1 for depth in depths)
    cascade = [cascade_depth(n) for n in sizes]
    assert cascade == sorted(cascade)
    assert all(depth <= n for depth, n in zip(cascade, sizes, strict=True))
    assert cascade[-1] == 4 * 128 + 32


def hostile() -> Iterator[Tensor]:
    """Yield batches at the ends of what float32 holds, in shape (8, 2, 2)."""
    x = torch.randn(8, 2, 2, generator=torch.Generator().manual_seed(0))
    yield torch.zeros_like(x)
    yield torch.full_like(x, 1e4)
    for factor in (1e-45, 1e-38, 1e-20, 1e10, 1e18, 1e38):
        yield x * factor
        yield x + factor
    yield torch.where(x > 1, 3e38, -3e38)
    yield x[:, :, :0]
    yield x[:0]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 1.0])
def test_a_bound_is_never_nan(eps: float, training: bool) -> None:
    for x in hostile():
        for momentum in (0.0, 0.1, 1.0):
            for weight in (0.0, 1.0, 1e30):
                reference = ReferenceBatchNorm(2, eps=eps, momentum=momentum).train(training)
                assert reference.weight is not None
                reference.weight.data.fill_(weight)
                for pair in ((F32, F32), (BF16, BF16), (F64, F64)):
                    twin = ReferenceTwin(reference, Arithmetic.for_dtypes(*pair))
                    expected = twin.expect(x)
                    found = [expected.output, twin.running_mean, twin.running_var]
                    found += expected.gradients(torch.ones_like(x))
                    for _, bound in found:
                        assert not bound.isnan().any(), (x, momentum, weight, pair)
                        assert (bound >= 0).all()


@pytest.mark.parametrize(
    ("state", "bounded"),
    [(torch.float16, False), (torch.bfloat16, True), (torch.float32, True)],
)
def test_a_sum_of_squares_that_float16_cannot_hold_bounds_nothing(
    state: torch.dtype, bounded: bool
) -> None:
    values = 30 * torch.randn(2, 100, generator=torch.Generator().manual_seed(0)).double()
    true = batch_statistics(values)
    half = torch.float16 if state is torch.float16 else torch.bfloat16
    errors = statistics_bounds(values, true, 101, Arithmetic.for_dtypes(half, state))
    assert bool(errors.var.isfinite().all()) == bounded
    assert errors.mean.isfinite().all()


def test_a_weight_gradient_whose_sum_is_kept_in_half_keeps_to_its_bound() -> None:
    arithmetic = Arithmetic.for_dtypes(F16, F16)
    for seed in range(100):
        batch = Batch(
            shape=(1, 16, 3, 2),
            seed=seed,
            sigma=1e-5**0.5,
            kappa=1.0,
            rectified=True,
            dtype="float16",
        )
        x, g = batch.tensor(), Case(batches=(batch,), dtype="float16").gradient(0)
        _, expected, _ = ReferenceTwin(ReferenceBatchNorm(16), arithmetic).expect(x).gradients(g)
        true = batch_statistics(rows(x))
        total = ((rows(x) - true.mean[:, None]) * rows(g)).sum(1).to(F16).double()
        got = (total * (true.var + 1e-5).rsqrt()).to(F16).double()
        assert ((got - expected.value).abs() <= expected.bound).all()
