"""What layers give on drawn cases beside the truth: errors over our bounds, and over fixed ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.arithmetic import Arithmetic
from pytest_bninvariants.batchnorm.cases import DENSE, LAYOUTS, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm, batch_statistics, rows
from pytest_bninvariants.batchnorm.strategies import bn_cases
from tests.benchmarks.accuracy.defects import DEFECTS, Plain

PRECISIONS = {  # dtype of the input, dtype of the state
    "float64": ("float64", "float64"),
    "float32": ("float32", "float32"),
    "bfloat16 in float32": ("bfloat16", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float16 in float32": ("float16", "float32"),
    "float16": ("float16", "float16"),
}
RESULTS = (
    "output",
    "input gradient",
    "weight gradient",
    "bias gradient",
    "running_mean",
    "running_var",
    "output in eval",
)
ASSERT_CLOSE = {  # rtol and atol of torch.testing.assert_close, by the dtype of a result
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float16: (1e-3, 1e-5),
}
NATIVE, PLAIN = CORRECT = ("torch.nn", "plain operators")
WELL_CONDITIONED = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One result of a layer on one case, beside the truth.

    Args:
        precision: one of `PRECISIONS`.
        case: its number in the precision.
        well: whether kappa is at most `WELL_CONDITIONED` in each channel.
        layer: its name.
        result: one of `RESULTS`.
        bounds: the largest error over our bound; above 1 the layer is rejected.
        close: the same over the tolerance of assert_close.
        unbounded: the share of channels without a bound.
    """

    precision: str
    case: int
    well: bool
    layer: str
    result: str
    bounds: float
    close: float
    unbounded: float

    @property
    def where(self) -> tuple[str, int, str]:
        """Return what it has in common with comparisons of other layers."""
        return self.precision, self.case, self.result


def comparisons(precisions: Iterable[str], count: int) -> Iterator[Comparison]:
    """Yield what each layer gives on so many cases of each precision."""
    for precision in precisions:
        for number, case in enumerate(drawn(precision, count)):
            yield from _compared(precision, number, case)


def drawn(precision: str, count: int) -> list[Case]:
    """Return cases of the kit's own strategy, the same ones each time."""
    dtype, state = PRECISIONS[precision]
    layouts = LAYOUTS if dtype == state else DENSE  # else torch fails: docs/torch-deviations.md
    cases: list[Case] = []

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(bn_cases(dtype=dtype, state_dtype=state, average=False, affine=True, layouts=layouts))
    def draw(case: Case) -> None:
        cases.append(case)

    draw()
    return cases


def _compared(precision: str, number: int, case: Case) -> Iterator[Comparison]:
    expected, well = truth(case), kappa(case) <= WELL_CONDITIONED
    for name, layer in layers(case).items():
        for result, got in results(layer, case).items():
            value, bound = expected[result]
            yield Comparison(
                precision=precision,
                case=number,
                well=well,
                layer=name,
                result=result,
                bounds=over_bound(got, value, bound),
                close=over_tolerance(got, value),
                unbounded=_unbounded(bound),
            )


def layers(case: Case) -> dict[str, type[nn.Module]]:
    """Return the layers of a case's rank by name: those that are right, and those that are not."""
    ranks = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    of_torch = ranks.get(len(case.batches[0].shape), nn.BatchNorm1d)
    return {NATIVE: of_torch, PLAIN: Plain, **DEFECTS}


def results(layer: type[nn.Module], case: Case) -> dict[str, Tensor]:
    """Return what a layer gives in a step of training, and then in eval, on the case's batch."""
    bn = layer(case.channels, eps=case.eps, momentum=case.momentum)
    bn.to(getattr(torch, case.state_dtype)).load_state_dict(case.state(), strict=False)
    x = case.batches[0].tensor().requires_grad_()
    y = bn(x)
    y.backward(torch.empty_like(y).copy_(gradient(case)))  # laid out as the output is
    found = (y, x.grad, bn.weight.grad, bn.bias.grad, bn.running_mean, bn.running_var, bn.eval()(x))
    return {name: value.detach() for name, value in zip(RESULTS, found, strict=True)}


def truth(case: Case) -> dict[str, BoundedValue]:
    """Return what a layer must give in the same, and how near."""
    reference = ReferenceBatchNorm(case.channels, eps=case.eps, momentum=case.momentum)
    reference.load_state_dict(case.state(), strict=False)
    x, state = case.batches[0].tensor(), getattr(torch, case.state_dtype)
    twin = ReferenceTwin(reference, Arithmetic.for_dtypes(x.dtype, state))
    training = twin.expect(x)
    reference.eval()
    found = (
        training.output,
        *training.gradients(gradient(case)),
        twin.running_mean,
        twin.running_var,
        twin.expect(x).output,
    )
    return dict(zip(RESULTS, found, strict=True))


def gradient(case: Case) -> Tensor:
    """Return the gradient of the case's loss with respect to the output."""
    g = case.gradient(0)
    return torch.ones_like(g) if case.plain_gradient else g


def kappa(case: Case) -> float:
    """Return the largest sqrt(1 + mean^2 / var) of the batch's channels."""
    mean, var = batch_statistics(rows(case.batches[0].tensor()))
    return float((1 + mean.square() / var).sqrt().max())


def over_bound(got: Tensor, value: Tensor, bound: Tensor) -> float:
    """Return the largest error over the bound, judged as the laws do."""
    overflown = got.isinf() & (got.sign() == value.sign())
    excused = overflown & (value.abs() + bound > torch.finfo(got.dtype).max)
    return _largest(got, value, bound, excused | bound.isinf())


def over_tolerance(got: Tensor, value: Tensor) -> float:
    """Return the largest error over assert_close's tolerance, both in the result's dtype."""
    rtol, atol = ASSERT_CLOSE[got.dtype]
    rounded = value.to(got.dtype)
    return _largest(got, rounded, atol + (rtol * rounded).abs(), torch.zeros_like(got).bool())


def _largest(got: Tensor, value: Tensor, allowed: Tensor, excused: Tensor) -> float:
    ratio = (got - value).abs().double() / allowed.double()
    ratio = ratio.masked_fill(excused | (got == value), 0.0)
    return float(ratio.nan_to_num(nan=math.inf, posinf=math.inf).max())


def _unbounded(bound: Tensor) -> float:
    by_channel = bound.transpose(0, 1).flatten(1) if bound.dim() > 1 else bound[:, None]
    return float(by_channel.isinf().any(1).double().mean())
