"""The reference held against plain Python, exact fractions, ONNX, autograd and torch's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.func import functional_call

from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm, batch_statistics, rows

U = 2.0**-53
CLOSE = 128 * U  # for values near 1 and sums of at most 60 of them
calm = settings(database=None, derandomize=True, deadline=None, max_examples=200)


def gamma(k: int) -> float:
    """Return the relative error of k roundings in a row."""
    return k * U / (1 - k * U)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=CLOSE, atol=CLOSE)


def assert_within(actual: Tensor, expected: Sequence[float], bounds: Sequence[float]) -> None:
    for got, truth, bound in zip(actual.flatten().tolist(), expected, bounds, strict=True):
        assert abs(got - truth) <= bound + 1e-300, f"{got} is {got - truth} off, bound {bound}"


def state(bn: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in bn.state_dict().items()}


def assert_same_state(bn: nn.Module, expected: dict[str, Tensor], *but: str) -> None:
    found = bn.state_dict()
    assert found.keys() == expected.keys()
    for name in expected.keys() - set(but):
        assert torch.equal(found[name], expected[name]), name


def used(bn: Any) -> Any:
    """Return a layer of three channels, none of whose numbers are the initial ones."""
    with torch.no_grad():
        for seed, name in enumerate(("weight", "bias", "running_mean", "running_var")):
            if getattr(bn, name) is not None:
                getattr(bn, name).copy_(numbers(3, seed=seed).abs() + 0.5)
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.fill_(3)
    return bn


# Plain Python


@dataclass(frozen=True)
class Channel:
    """One channel in plain Python, and how far from it a float64 BatchNorm may end up.

    `math.fsum` rounds once. With the mean in two parts, high and low, a deviation is off by one
    rounding whatever the offset, so that the bounds are the reference's own roundings, and a few of
    this one's. They are first order in the conditioning: an error of the mean counts (var + eps)
    to the -1/2 times in the output.
    """

    xs: list[float]
    eps: float
    weight: float
    bias: float
    stored: tuple[float, float] | None = None

    @cached_property
    def mean(self) -> tuple[float, float]:
        if self.stored is not None:
            return self.stored[0], 0.0
        n = len(self.xs)
        high = math.fsum(self.xs) / n
        return high, math.fsum([*self.xs, *[-high] * n]) / n

    @cached_property
    def deviations(self) -> list[float]:
        high, low = self.mean
        return [math.fsum((x, -high, -low)) for x in self.xs]

    @cached_property
    def var(self) -> float:
        if self.stored is not None:
            return self.stored[1]
        return math.fsum(d * d for d in self.deviations) / len(self.xs)

    @cached_property
    def scale(self) -> float:
        return 1 / math.sqrt(self.var + self.eps)

    @cached_property
    def normalised(self) -> list[float]:
        return [d * self.scale for d in self.deviations]

    @cached_property
    def outputs(self) -> list[float]:
        return [self.weight * xh + self.bias for xh in self.normalised]

    def gradient(self, grad: list[float]) -> list[float]:
        """Return the input's gradient by way of those of variance and mean, as the paper does."""
        of_xh = [g * self.weight for g in grad]
        direct = [g * self.scale for g in of_xh]
        if self.stored is not None:
            return direct
        n, pairs = len(grad), list(zip(of_xh, self.deviations, strict=True))
        of_var = math.fsum(g * d for g, d in pairs) * -0.5 * self.scale**3
        of_mean = -math.fsum(direct) - of_var * 2 * math.fsum(self.deviations) / n
        return [
            own + of_var * 2 * d / n + of_mean / n
            for own, d in zip(direct, self.deviations, strict=True)
        ]

    @cached_property
    def mean_bound(self) -> float:
        if self.stored is not None:
            return 0.0
        n = len(self.xs)
        rough = gamma(n) * math.fsum(map(abs, self.xs)) / n
        left = math.fsum(map(abs, self.deviations)) / n + rough
        return U * abs(self.mean[0]) + gamma(n + 2) * left

    @cached_property
    def var_bound(self) -> float:
        """Bound mean(e^2) - mean(e)^2, where e are deviations from a mean that is off a little."""
        if self.stored is not None:
            return 0.0
        n, size = len(self.xs), self.var + self.mean_bound**2
        return gamma(n + 10) * size + 2 * gamma(n + 2) * self.mean_bound * math.sqrt(size)

    @cached_property
    def scale_bound(self) -> float:
        """Relative, as it is where `gamma` stands for it."""
        relative = self.var_bound / (self.var + self.eps)
        return relative / (2 * (1 - relative)) + gamma(6)

    @cached_property
    def normalised_bounds(self) -> list[float]:
        shift = self.scale * (1 + self.scale_bound) * self.mean_bound * (1 + gamma(2))
        return [shift + abs(xh) * (self.scale_bound + gamma(6)) for xh in self.normalised]

    @cached_property
    def output_bounds(self) -> list[float]:
        w, b = abs(self.weight), abs(self.bias)
        parts = zip(self.normalised, self.normalised_bounds, strict=True)
        return [w * bound + gamma(5) * (w * abs(xh) + b) for xh, bound in parts]

    def parameter_bounds(self, grad: list[float]) -> tuple[float, float]:
        """Bound the gradients of weight and bias."""
        n, size = len(grad), math.fsum(map(abs, grad))
        parts = list(zip(grad, self.normalised, self.normalised_bounds, strict=True))
        from_xh = math.fsum(abs(g) * bound for g, _, bound in parts)
        from_sum = gamma(n + 4) * math.fsum(abs(g) * (abs(xh) + bound) for g, xh, bound in parts)
        return from_xh + from_sum, gamma(n + 1) * size

    def gradient_bounds(self, grad: list[float]) -> list[float]:
        n, factor = len(grad), abs(self.weight) * self.scale
        if self.stored is not None:
            return [factor * abs(g) * (self.scale_bound + gamma(6)) for g in grad]
        of_weight, of_bias = self.parameter_bounds(grad)
        mean = math.fsum(map(abs, grad)) / n
        product = math.fsum(abs(g * xh) for g, xh in zip(grad, self.normalised, strict=True)) / n
        return [
            factor
            * (1 + self.scale_bound)
            * (
                (of_bias + abs(xh) * of_weight) / n
                + bound * (product + of_weight / n)
                + (self.scale_bound + gamma(20)) * (abs(g) + mean + abs(xh) * product)
            )
            for g, xh, bound in zip(grad, self.normalised, self.normalised_bounds, strict=True)
        ]


class Case(NamedTuple):
    """What hypothesis draws: a shape, the arguments, and where the numbers lie."""

    shape: tuple[int, ...]
    eps: float
    momentum: float | None
    offset: float
    spread: float
    seed: int

    def batch(self, step: int = 0) -> Tensor:
        """Return a batch whose channels have different offsets and spreads."""
        values = numbers(*self.shape, seed=self.seed + step)
        channel = torch.arange(self.shape[1]).reshape(-1, *[1] * (len(self.shape) - 2))
        return values * self.spread / (channel + 1) + self.offset * (1 - channel)

    def layer(self) -> ReferenceBatchNorm:
        bn = ReferenceBatchNorm(self.shape[1], self.eps, self.momentum)
        with torch.no_grad():
            bn.weight.copy_(numbers(self.shape[1], seed=self.seed + 10))
            bn.bias.copy_(numbers(self.shape[1], seed=self.seed + 11))
        return bn


shapes = (
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.lists(st.integers(1, 3), max_size=3))
    .map(lambda drawn: (drawn[0], drawn[1], *drawn[2]))
    .filter(lambda shape: math.prod(shape) > shape[1])
)
cases = st.builds(
    Case,
    shape=shapes,
    eps=st.floats(1e-12, 1.0),
    momentum=st.none() | st.floats(-1.0, 2.0),
    offset=st.floats(-1e6, 1e6),
    spread=st.just(0.0) | st.floats(1e-4, 1e4),
    seed=st.integers(0, 2**32),
)


def channel_values(x: Tensor, channel: int) -> list[float]:
    return [float(value) for value in x.numpy()[:, channel].ravel()]


def assert_agrees(bn: ReferenceBatchNorm, x: Tensor, grad: Tensor) -> None:
    """Hold output and gradients in the present mode against plain Python."""
    stored = None if bn.training else (bn.running_mean.tolist(), bn.running_var.tolist())
    weights, biases = bn.weight.tolist(), bn.bias.tolist()
    gradients = bn.gradients(x, grad)
    y = bn(x).detach()
    assert y.shape == gradients.input.shape == x.shape
    for c in range(x.shape[1]):
        channel = Channel(
            channel_values(x, c),
            bn.eps,
            weights[c],
            biases[c],
            stored and (stored[0][c], stored[1][c]),
        )
        g = channel_values(grad, c)
        assert_within(y[:, c], channel.outputs, channel.output_bounds)
        assert_within(gradients.input[:, c], channel.gradient(g), channel.gradient_bounds(g))
        of_weight = math.fsum(a * b for a, b in zip(g, channel.normalised, strict=True))
        bounds = channel.parameter_bounds(g)
        assert_within(gradients.weight[c], [of_weight], bounds[:1])
        assert_within(gradients.bias[c], [math.fsum(g)], bounds[1:])


@calm
@given(case=cases)
def test_training_agrees_with_plain_python(case: Case) -> None:
    assert_agrees(case.layer(), case.batch(), numbers(*case.shape, seed=case.seed + 1))


@calm
@given(case=cases)
def test_eval_agrees_with_plain_python(case: Case) -> None:
    bn = case.layer().eval()
    bn.running_mean.copy_(case.offset + numbers(case.shape[1], seed=case.seed + 2))
    bn.running_var.copy_(case.spread * numbers(case.shape[1], seed=case.seed + 3).abs())
    assert_agrees(bn, case.batch(), numbers(*case.shape, seed=case.seed + 1))


@calm
@given(case=cases, steps=st.integers(1, 4))
def test_running_statistics_agree_with_plain_python(case: Case, steps: int) -> None:
    bn = case.layer()
    batches = [case.batch(step) for step in range(steps)]
    for x in batches:
        bn(x)
    for c in range(case.shape[1]):
        channels = [Channel(channel_values(x, c), case.eps, 1.0, 0.0) for x in batches]
        n = len(channels[0].xs)
        means = [(channel.mean[0], channel.mean_bound) for channel in channels]
        variances = [
            (channel.var * n / (n - 1), channel.var_bound * n / (n - 1)) for channel in channels
        ]
        for got, start, of_batches in (
            (bn.running_mean[c], 0.0, means),
            (bn.running_var[c], 1.0, variances),
        ):
            value, bound = Fraction(start), 0.0
            for count, (new, new_bound) in enumerate(of_batches, 1):
                m = Fraction(case.momentum) if case.momentum is not None else Fraction(1, count)
                keep, take = abs(float(1 - m)), abs(float(m))
                sizes = keep * (abs(float(value)) + bound) + take * (abs(new) + new_bound)
                bound = keep * bound + take * new_bound + gamma(7) * sizes
                value = (1 - m) * value + m * Fraction(new)
            if case.momentum is None:
                value = sum(Fraction(new) for new, _ in of_batches) / steps
            assert_within(got, [float(value)], [bound])
    assert bn.num_batches_tracked.item() == steps


# Exact fractions


@pytest.mark.parametrize("offset", [0.0, 1.0, -1e8, 1e8, 1e12, 1e15])
def test_statistics_are_exact_but_for_rounding_at_any_offset(offset: float) -> None:
    n = 1000
    values = numbers(8, n) + offset
    found = batch_statistics(values)
    for row, mean, var in zip(values, found.mean.tolist(), found.var.tolist(), strict=True):
        exact = [Fraction(value) for value in row.tolist()]
        true_mean = sum(exact) / n
        true_var = sum((value - true_mean) ** 2 for value in exact) / n
        # deviations are near 1, and the rough mean is off by gamma(n) |mean|
        mean_bound = U * abs(true_mean) + gamma(n + 2) * (1 + gamma(n) * (abs(offset) + 1))
        assert abs(Fraction(mean) - true_mean) <= mean_bound
        size = float(true_var) + float(mean_bound) ** 2
        var_bound = gamma(n + 4) * size + 2 * gamma(n + 2) * float(mean_bound) * math.sqrt(size)
        assert abs(Fraction(var) - true_var) <= var_bound


@pytest.mark.parametrize("offset", [0.0, 0.1, -1e6 / 3, 1e15])
@pytest.mark.parametrize("n", [2, 3, 7, 100, 1001])
def test_equal_values_have_no_variance_and_are_their_mean(offset: float, n: int) -> None:
    mean, var = batch_statistics(torch.full((2, n), offset, dtype=torch.float64))
    assert mean.tolist() == [offset, offset]
    assert var.tolist() == [0.0, 0.0]


# ONNX

SHAPES = [(7, 3), (4, 3, 5), (2, 3, 4, 3), (2, 3, 2, 3, 4)]
EPS = 2.0**-10  # float32, which is how ONNX stores attributes, holds it and the momenta below


def onnx_batch_norm(bn: ReferenceBatchNorm, x: Tensor, keep: float) -> list[Tensor]:
    """Run ONNX's BatchNormalization on a layer's state; it has y, mean and var where it trains.

    Args:
        bn: whose state and mode it takes.
        x: the batch.
        keep: ONNX's momentum, the weight of the old running statistic.
    """
    inputs = {
        "x": x,
        "scale": bn.weight.detach(),
        "bias": bn.bias.detach(),
        "mean": bn.running_mean,
        "var": bn.running_var,
    }
    outputs = ["y", "new_mean", "new_var"] if bn.training else ["y"]
    node = helper.make_node(
        "BatchNormalization",
        list(inputs),
        outputs,
        epsilon=bn.eps,
        momentum=keep,
        training_mode=int(bn.training),
    )
    double = TensorProto.DOUBLE
    described = [helper.make_tensor_value_info(name, double, None) for name in [*inputs, *outputs]]
    graph = helper.make_graph([node], "bn", described[: len(inputs)], described[len(inputs) :])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    feeds = {name: value.numpy().copy() for name, value in inputs.items()}
    return [torch.from_numpy(np.asarray(y)) for y in ReferenceEvaluator(model).run(None, feeds)]


@pytest.mark.parametrize("shape", SHAPES)
def test_eval_agrees_with_onnx(shape: tuple[int, ...]) -> None:
    bn = used(ReferenceBatchNorm(3, eps=EPS)).eval()
    x = numbers(*shape)
    (y,) = onnx_batch_norm(bn, x, keep=0.75)
    assert_close(bn(x).detach(), y)


@pytest.mark.parametrize("momentum", [0.25, 0.75, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_agrees_with_onnx(shape: tuple[int, ...], momentum: float) -> None:
    bn = used(ReferenceBatchNorm(3, eps=EPS, momentum=momentum))
    n = math.prod(shape) // shape[1]
    for step in range(3):
        x, old = numbers(*shape, seed=step), state(bn)
        y, mean, var = onnx_batch_norm(bn, x, keep=1 - momentum)
        assert_close(bn(x).detach(), y)
        assert_close(bn.running_mean, mean)
        biased = (var - (1 - momentum) * old["running_var"]) / momentum
        unbiased = biased * n / (n - 1)
        assert_close(bn.running_var, (1 - momentum) * old["running_var"] + momentum * unbiased)


# Autograd

MODES = [(True, True), (False, True), (False, False)]  # training, and whether there are statistics


@pytest.mark.parametrize(("training", "tracked"), MODES)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)])
def test_its_forward_can_be_differentiated_twice(
    shape: tuple[int, ...], training: bool, tracked: bool
) -> None:
    bn = used(ReferenceBatchNorm(3, eps=0.1, track_running_stats=tracked)).train(training)

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(bn, {"weight": weight, "bias": bias}, (x,))

    inputs = [value.requires_grad_() for value in (numbers(*shape), numbers(3), numbers(3, seed=1))]
    assert torch.autograd.gradcheck(forward, inputs)
    assert torch.autograd.gradgradcheck(forward, inputs)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("training", "tracked"), MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_its_forward(
    shape: tuple[int, ...], training: bool, tracked: bool, affine: bool
) -> None:
    bn = used(ReferenceBatchNorm(3, affine=affine, track_running_stats=tracked)).train(training)
    x, grad = numbers(*shape).requires_grad_(), numbers(*shape, seed=1)
    twin = used(ReferenceBatchNorm(3, track_running_stats=tracked)).train(training)
    if not affine:
        nn.init.ones_(twin.weight)
    found = bn.gradients(x, grad)
    expected = torch.autograd.grad(twin(x), (x, twin.weight, twin.bias), grad)
    for actual, truth in zip(found, expected, strict=True):
        assert_close(actual, truth)
    (of_input,) = torch.autograd.grad(bn(x), x, grad)
    assert_close(of_input, expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_an_input_has_its_dtype_and_that_of_gradients_is_float64(
    dtype: torch.dtype,
) -> None:
    bn = used(ReferenceBatchNorm(3))
    x, grad = numbers(7, 3).to(dtype).requires_grad_(), numbers(7, 3, seed=1)
    (of_input,) = torch.autograd.grad(bn(x), x, grad)
    found = bn.gradients(x, grad)
    assert of_input.dtype is dtype
    assert {value.dtype for value in found} == {torch.float64}
    assert not any(value.requires_grad for value in found)
    torch.testing.assert_close(of_input, found.input.to(dtype))


def test_a_backward_works_after_later_batches_were_tracked() -> None:
    bn = used(ReferenceBatchNorm(3))
    x, later = numbers(7, 3).requires_grad_(), numbers(7, 3, seed=1)
    in_training, in_eval = bn(x), bn.eval()(x)
    expected = bn.gradients(x, later).input, bn.train().gradients(x, later).input
    bn(later)
    found = torch.autograd.grad(in_eval, x, later) + torch.autograd.grad(in_training, x, later)
    for actual, truth in zip(found, expected, strict=True):
        assert_close(actual, truth)


# torch's layers

LAYERS: list[tuple[Callable[..., Any], tuple[int, ...]]] = list(
    zip((nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), SHAPES, strict=True)
)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"momentum": 0.0},
    {"momentum": 1.0},
    {"momentum": 2.0, "eps": 0.5},
    {"momentum": -1.0},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False, "eps": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_it_agrees_with_layers_in_double(
    layer: Callable[..., Any], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    bn = used(layer(3, dtype=torch.float64, **options))
    reference = ReferenceBatchNorm(3, **options)
    reference.load_state_dict(bn.state_dict())
    for step, training in enumerate([False, True, True, True]):
        bn.train(training)
        reference.train(training)
        x, grad = numbers(*shape, seed=step).requires_grad_(), numbers(*shape, seed=step + 10)
        expected = torch.autograd.grad(y := bn(x), (x, *bn.parameters()), grad)
        found = reference.gradients(x, grad)
        for actual, truth in zip(found, expected, strict=False):
            assert_close(actual, truth)
        assert_close(reference(x).detach(), y.detach())
        assert_close_state(reference, bn)


def assert_close_state(bn: nn.Module, layer: nn.Module) -> None:
    found, expected = bn.state_dict(), layer.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_close(found[name], value)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_state_of_a_layer_makes_it_a_twin(options: dict[str, Any]) -> None:
    bn = used(nn.BatchNorm2d(3, **options))
    reference = ReferenceBatchNorm(3, **options)
    assert reference.load_state_dict(bn.state_dict()) == ([], [])
    for name, value in reference.state_dict().items():
        assert value.dtype is (torch.int64 if name.endswith("tracked") else torch.float64)
        assert torch.equal(value, bn.state_dict()[name].to(value.dtype))
    x = numbers(2, 3, 4, 4).float()
    torch.testing.assert_close(reference(x).float(), bn(x))


# Momentum and counter


def means_of(batches: list[Tensor]) -> Tensor:
    return torch.stack([x.mean(0) for x in batches])


def test_the_initial_state_is_that_of_a_layer() -> None:
    expected = nn.BatchNorm1d(3, dtype=torch.float64).state_dict()
    assert_same_state(ReferenceBatchNorm(3), expected)


def test_without_momentum_statistics_are_the_plain_mean_over_batches() -> None:
    bn = ReferenceBatchNorm(3, momentum=None)
    batches = [numbers(7, 3, seed=seed) for seed in range(5)]
    for count, x in enumerate(batches, 1):
        bn(x)
        seen = batches[:count]
        assert_close(bn.running_mean, means_of(seen).mean(0))
        assert_close(bn.running_var, torch.stack([x.var(0) for x in seen]).mean(0))


def test_without_momentum_an_empty_batch_halves_what_the_next_one_brings() -> None:
    bn = ReferenceBatchNorm(3, momentum=None)
    bn(numbers(0, 3))
    bn(x := numbers(7, 3))
    assert_close(bn.running_mean, x.mean(0) / 2)
    assert_close(bn.running_var, (1 + x.var(0)) / 2)


@pytest.mark.parametrize(
    ("momentum", "old", "new"), [(0.0, 1.0, 0.0), (1.0, 0.0, 1.0), (2.0, -1.0, 2.0), (-1, 2, -1)]
)
def test_momentum_is_the_weight_of_the_new_batch(momentum: float, old: float, new: float) -> None:
    bn = used(ReferenceBatchNorm(3, momentum=momentum))
    before, x = state(bn), numbers(7, 3)
    bn(x)
    assert_close(bn.running_mean, old * before["running_mean"] + new * x.mean(0))
    assert_close(bn.running_var, old * before["running_var"] + new * x.var(0))
    assert bn.num_batches_tracked.item() == 4


def test_momentum_may_change_between_batches() -> None:
    bn = used(ReferenceBatchNorm(3, momentum=0.5))
    bn(numbers(7, 3))
    bn.momentum = 1.0
    bn(x := numbers(7, 3, seed=1))
    assert_close(bn.running_mean, x.mean(0))


# Modes and tracking


def test_eval_leaves_the_state() -> None:
    bn = used(ReferenceBatchNorm(3)).eval()
    before = state(bn)
    bn(numbers(7, 3))
    assert_same_state(bn, before)


@pytest.mark.parametrize("training", [True, False])
def test_without_tracking_each_mode_uses_batch_statistics(training: bool) -> None:
    bn = ReferenceBatchNorm(3, eps=0.0, affine=False, track_running_stats=False).train(training)
    assert not bn.state_dict()
    assert bn.uses_batch_statistics
    y = bn(numbers(7, 3) * 5 + 2)
    assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64))
    assert_close(y.var(0, correction=0), torch.ones(3, dtype=torch.float64))
    assert not bn.state_dict()


def test_tracking_switched_off_keeps_the_statistics_for_eval() -> None:
    bn, twin = used(ReferenceBatchNorm(3)), used(ReferenceBatchNorm(3))
    bn.track_running_stats = False
    before, x = state(bn), numbers(7, 3)
    assert torch.equal(bn(x), twin(x))
    assert_same_state(bn, before)
    twin.load_state_dict(before)
    assert not bn.eval().uses_batch_statistics
    assert torch.equal(bn(x), twin.eval()(x))


def test_not_affine_is_an_affine_one_of_weight_1_and_bias_0() -> None:
    bn, plain = ReferenceBatchNorm(3), ReferenceBatchNorm(3, affine=False)
    assert (plain.weight, plain.bias, list(plain.parameters())) == (None, None, [])
    assert torch.equal(plain(numbers(7, 3)), bn(numbers(7, 3)))
    assert torch.equal(plain.eval()(numbers(7, 3)), bn.eval()(numbers(7, 3)))


# Batches of hardly anything


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (2, 3, 4, 0), (0, 3, 2, 2, 2)])
def test_an_empty_batch_is_counted_and_leaves_the_statistics(
    shape: tuple[int, ...], training: bool
) -> None:
    bn = used(ReferenceBatchNorm(3)).train(training)
    before, x = state(bn), torch.zeros(shape)
    y = bn(x)
    assert (y.shape, y.dtype) == (x.shape, torch.float64)
    assert_same_state(bn, before, "num_batches_tracked")
    assert bn.num_batches_tracked.item() == 3 + training
    gradients = bn.gradients(x, x)
    assert (gradients.input.shape, gradients.input.dtype) == (x.shape, torch.float64)
    zeros = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(gradients.weight, zeros)
    assert torch.equal(gradients.bias, zeros)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
def test_an_empty_batch_does_to_a_layer_what_it_does_here(shape: tuple[int, ...]) -> None:
    bn = used(nn.BatchNorm1d(3, dtype=torch.float64))
    reference = ReferenceBatchNorm(3)
    reference.load_state_dict(bn.state_dict())
    assert reference(numbers(*shape)).shape == bn(numbers(*shape)).shape
    assert_same_state(reference, state(bn))


ONE_VALUE = [(1, 3), (1, 3, 1), (1, 3, 1, 1), (1, 3, 1, 1, 1)]


@pytest.mark.parametrize("shape", ONE_VALUE)
@pytest.mark.parametrize(("training", "tracked"), [(True, True), (True, False), (False, False)])
def test_one_value_per_channel_has_no_batch_statistics(
    shape: tuple[int, ...], training: bool, tracked: bool
) -> None:
    bn = ReferenceBatchNorm(3, track_running_stats=tracked).train(training)
    before = state(bn)
    with pytest.raises(ValueError, match=r"one value per channel has no variance: input \(1, 3"):
        bn(numbers(*shape))
    assert_same_state(bn, before, "num_batches_tracked")


@pytest.mark.parametrize("shape", ONE_VALUE)
def test_one_value_per_channel_is_normalised_with_stored_statistics(shape: tuple[int, ...]) -> None:
    bn = used(ReferenceBatchNorm(3)).eval()
    others = torch.cat([numbers(*shape), numbers(*shape, seed=1)])
    assert torch.equal(bn(numbers(*shape)), bn(others)[:1])


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 3), (1, 3, 1, 2)])
def test_two_values_per_channel_are_enough(shape: tuple[int, ...]) -> None:
    bn = ReferenceBatchNorm(3, eps=0.0, momentum=1.0)
    assert_close(bn(numbers(*shape)).abs().detach(), torch.ones(shape, dtype=torch.float64))
    low, high = (rows(numbers(*shape))[:, k] for k in (0, 1))
    assert_close(bn.running_var, (high - low).square() / 2)


# What is no batch


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((), "2 to 5 dimensions, this has 0"),
        ((3,), "2 to 5 dimensions, this has 1"),
        ((2, 3, 1, 1, 1, 1), "2 to 5 dimensions, this has 6"),
        ((3, 2), "expected 3 channels, got 2"),
        ((3, 4, 3), "expected 3 channels, got 4"),
        ((0, 1), "expected 3 channels, got 1"),
    ],
)
def test_a_wrong_rank_or_number_of_channels_is_an_error(
    shape: tuple[int, ...], said: str, training: bool
) -> None:
    bn = ReferenceBatchNorm(3).train(training)
    before = state(bn)
    for call in (bn, lambda x: bn.gradients(x, x)):
        with pytest.raises(ValueError, match=said):
            call(numbers(*shape))
    assert_same_state(bn, before)


# Inputs and state


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_narrow_input_is_taken_at_its_exact_values(dtype: torch.dtype, training: bool) -> None:
    bn, twin = (used(ReferenceBatchNorm(3)).train(training) for _ in range(2))
    x = numbers(4, 3, 5).to(dtype)
    y = bn(x)
    assert y.dtype is torch.float64
    assert torch.equal(y, twin(x.double()))
    assert_same_state(bn, state(twin))
    found, expected = bn.gradients(x, x), twin.gradients(x.double(), x.double())
    assert all(map(torch.equal, found, expected))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other sample": lambda x: torch.stack([x, -x], 1).flatten(0, 1)[::2],
    "part of more channels": lambda x: torch.cat([x, x, x], 1)[:, 3:6],
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_an_input_lies_in_memory_does_not_matter(layout: str, training: bool) -> None:
    x = numbers(4, 3, 2, 5)
    other = LAYOUTS[layout](x)
    assert torch.equal(other, x)
    assert other.stride() != x.stride() or not other.is_contiguous()
    bn, twin = (used(ReferenceBatchNorm(3)).train(training) for _ in range(2))
    assert_close(bn(other).detach(), twin(x).detach())
    assert_close_state(bn, twin)
    for actual, expected in zip(bn.gradients(other, other), twin.gradients(x, x), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("training", [True, False])
def test_an_expanded_input_is_many_equal_samples(training: bool) -> None:
    bn, twin = (used(ReferenceBatchNorm(3)).train(training) for _ in range(2))
    x = numbers(1, 3, 5).expand(4, 3, 5)
    assert_close(bn(x).detach(), twin(x.clone()).detach())
    assert_close_state(bn, twin)


@pytest.mark.parametrize("training", [True, False])
def test_input_and_gradient_are_not_written_to(training: bool) -> None:
    bn = used(ReferenceBatchNorm(3)).train(training)
    x, grad = numbers(4, 3, 5), numbers(4, 3, 5, seed=1)
    y = bn(x)
    bn.gradients(x, grad)
    y.detach().zero_()
    assert torch.equal(x, numbers(4, 3, 5))
    assert torch.equal(grad, numbers(4, 3, 5, seed=1))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_buffers_are_updated_in_place_and_carry_no_graph(momentum: float | None) -> None:
    bn = used(ReferenceBatchNorm(3, momentum=momentum))
    buffers, before = dict(bn.named_buffers()), state(bn)
    assert list(buffers) == ["running_mean", "running_var", "num_batches_tracked"]
    x = numbers(7, 3).requires_grad_()
    assert bn(x).requires_grad
    for name, buffer in buffers.items():
        assert getattr(bn, name) is buffer
        assert not buffer.requires_grad
        assert not torch.equal(buffer, before[name])


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_statistics_are_tracked_where_no_graph_is_made(grad_mode: Callable[[], Any]) -> None:
    bn, twin = used(ReferenceBatchNorm(3)), used(ReferenceBatchNorm(3))
    twin(numbers(7, 3))
    with grad_mode():
        assert not bn(numbers(7, 3)).requires_grad
    assert_same_state(bn, state(twin))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("training", "tracked"), MODES)
def test_gradients_leave_the_state(training: bool, tracked: bool, momentum: float | None) -> None:
    bn = used(ReferenceBatchNorm(3, momentum=momentum, track_running_stats=tracked)).train(training)
    before = state(bn)
    bn.gradients(numbers(7, 3).requires_grad_(), numbers(7, 3, seed=1))
    assert_same_state(bn, before)
    assert bn.training is training
    assert all(parameter.grad is None for parameter in bn.parameters())


def test_its_repr_shows_the_arguments() -> None:
    assert repr(ReferenceBatchNorm(3)) == (
        "ReferenceBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, bias=True,"
        " track_running_stats=True)"
    )
    assert repr(ReferenceBatchNorm(5, 0.5, None, False, False)) == (
        "ReferenceBatchNorm(5, eps=0.5, momentum=None, affine=False, bias=False,"
        " track_running_stats=False)"
    )


@pytest.mark.parametrize("training", [True, False])
def test_without_a_bias_the_weight_still_counts(training: bool) -> None:
    weighted, plain = ReferenceBatchNorm(3, bias=False), ReferenceBatchNorm(3, affine=False)
    weighted.train(training)
    plain.train(training)
    assert weighted.bias is None
    assert weighted.weight is not None
    with torch.no_grad():
        weighted.weight.copy_(torch.tensor([2.0, -3.0, 0.5]))
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weighted(x), plain(x) * weighted.weight)


def test_without_affine_there_is_no_bias_whatever_is_asked() -> None:
    layer = ReferenceBatchNorm(3, affine=False, bias=True)
    assert layer.bias is None
    assert layer.weight is None
