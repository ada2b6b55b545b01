"""Correct layers, drawn settings, and how far a layer's results are from the truth."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.arithmetic import Arithmetic
from pytest_bninvariants.batchnorm.cases import DENSE, LAYOUTS, LEAST_DIMS, Batch
from pytest_bninvariants.batchnorm.expectation import BatchExpectation, BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm

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
        layouts -= {layout for layout, least in LEAST_DIMS.items() if len(shape) < least}
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
