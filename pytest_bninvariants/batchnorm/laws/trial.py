"""One law's run on one layer: it executes lines of code and keeps them.

A law speaks in lines such as `y = layer(x)`, so what a failure prints is what has run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any, NoReturn

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import Arithmetic
from pytest_bninvariants.batchnorm.cases import Batch, Case, literal
from pytest_bninvariants.batchnorm.expectation import BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.laws.subject import LayerUnderTest
from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm
from pytest_bninvariants.errors import GateError, LawBroken

_SHOWN = 8  # channels of a report
_DEFAULTS = {
    "eps": 1e-5,
    "momentum": 0.1,
    "affine": True,
    "track_running_stats": True,
    "bias": True,
}


@dataclass(slots=True)
class ComparisonTally:
    """Count what was compared.

    Args:
        posed: comparisons; one in which some channels have no bound counts for its share.
        ill_posed: comparisons that were not made, likewise.
        examples: cases that were run.
        unjudged: how many of these, each counted for its share of ill-posed comparisons.
    """

    posed: float = 0
    ill_posed: float = 0
    examples: int = 0
    unjudged: float = 0

    def take(self, case: ComparisonTally) -> None:
        """Count what was compared in a case."""
        self.posed += case.posed
        self.ill_posed += case.ill_posed
        self.examples += 1
        self.unjudged += case.ill_posed / (case.posed + case.ill_posed or 1)


@lru_cache(maxsize=4096)
def _compiled(line: str, mode: str) -> CodeType:
    return compile(line, "<law>", mode)


class LawTrial:
    """Run a law's lines on a layer.

    Args:
        law: the law's name.
        statement: what it says.
        subject: the layer under test.
        case: how it is made and what it gets.
        tally: where comparisons are counted.
    """

    def __init__(
        self, law: str, statement: str, subject: LayerUnderTest, case: Case, tally: ComparisonTally
    ) -> None:
        self.law, self.statement, self.subject, self.case = law, statement, subject, case
        self.tally = tally
        self._names: dict[str, Any] = {"torch": torch, subject.name: subject.factory}
        self._lines: list[str | Callable[[], list[str]]] = []

    def evaluate(self, expression: str) -> Any:
        """Return what an expression gives; if it raises, that breaks the law."""
        try:
            return eval(_compiled(expression, "eval"), self._names)
        except Exception as error:  # whatever the layer raises is the finding
            self._fail_raising(expression, error)

    def run(self, *lines: str) -> None:
        """Run lines of code; if one raises, that breaks the law."""
        for line in lines:
            self._lines.append(line)
            try:
                exec(_compiled(line, "exec"), self._names)
            except Exception as error:  # whatever the layer raises is the finding
                self._fail_raising(line, error)

    def _fail_raising(self, line: str, error: Exception) -> NoReturn:
        self.fail(f"`{line}` raised {type(error).__name__}: {error}", None, cause=error)

    def bind(self, name: str, value: Any, source: Callable[[], list[str]]) -> None:
        """Bind a name; the source is asked for lines of code that do so if the law is broken."""
        self._names[name] = value
        self._lines.append(source)

    def bind_value(self, name: str, value: Tensor) -> None:
        """Bind a name to a copy of a tensor, which a report prints whole as it was before."""
        self.bind(name, value.clone(), lambda: [f"{name} = {literal(value)}"])

    def for_case(self, case: Case) -> LawTrial:
        """Return a new trial of the same law, on another case."""
        return LawTrial(self.law, self.statement, self.subject, case, self.tally)

    def _settings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {name: getattr(self.case, name) for name in _DEFAULTS} | arguments

    def make_layer(self, **arguments: Any) -> None:
        """Make the layer of the case, as `layer`, in a new layer's state.

        Args:
            arguments: the constructor's, in place of the case's.
        """
        case = self.case
        given = self._settings(arguments)
        given = {name: each for name, each in given.items() if each != _DEFAULTS.get(name)}
        moved = "" if case.device == "cpu" else f"'{case.device}', "
        cast = f".to({moved}torch.{case.state_dtype})"
        if cast == ".to(torch.float32)":
            cast = ""
        self.run(f"layer = {self.subject.call(case.channels, **given)}{cast}")

    def build_layer(self, **arguments: Any) -> None:
        """Make the layer of the case, in its state, as `layer`; arguments as `make_layer`."""
        case = self.case
        self.make_layer(**arguments)
        for name, value in case.state().items():
            if not isinstance(self.evaluate(f"getattr(layer, {name!r}, None)"), Tensor):
                self.fail(f"the layer has no tensor {name!r}", f"hasattr(layer, {name!r})")
            self.bind_value("value", value)
            self.run(f"layer.{name}.data.copy_(value)")
        if case.count and self.evaluate("getattr(layer, 'num_batches_tracked', None) is not None"):
            self.run(f"layer.num_batches_tracked.fill_({case.count})")

    def make_twin(self, **arguments: Any) -> ReferenceTwin:
        """Return the reference in the case's state, with bounds; arguments as `make_layer`."""
        case = self.case
        reference = ReferenceBatchNorm(case.channels, **self._settings(arguments))
        with torch.no_grad():
            for name, value in case.state().items():
                tensor = getattr(reference, name)
                if tensor is not None:
                    tensor.copy_(value)
            if reference.num_batches_tracked is not None:
                reference.num_batches_tracked.fill_(case.count)
        input_dtype, state_dtype = (getattr(torch, n) for n in (case.dtype, case.state_dtype))
        return ReferenceTwin(reference, Arithmetic.for_dtypes(input_dtype, state_dtype))

    def bind_batch(self, batch: Batch, *, grad: bool = False) -> Tensor:
        """Bind `x` to a batch, and return it."""
        x = batch.tensor(self.case.device)
        moved = [] if self.case.device == "cpu" else [f"x = x.to({self.case.device!r})"]
        self.bind("x", x, lambda: [*batch.source(), *moved])
        if grad:
            self.run("x = x.detach().requires_grad_()")
        return x.detach()

    def run_backward(self, index: int) -> Tensor:
        """Run the backward of the case's loss, and return the gradient of the output."""
        if self.case.plain_gradient:
            self.run("y.sum().backward()")
            return torch.ones(self.case.batches[index].shape)
        g = self.case.gradient(index)
        self.bind_value("g", g)
        self.run("y.backward(g)")
        return g

    def check_close(self, expression: str, expected: BoundedValue, *, axis: int = 0) -> None:
        """Hold that a tensor is as near to its true value as rounding allows.

        Args:
            expression: the tensor.
            expected: the true value and the bound.
            axis: which axis counts channels.
        """
        got = self.evaluate(expression)
        if not isinstance(got, Tensor):
            self.fail(
                f"{expression} is {got!r}, no tensor", f"isinstance({expression}, torch.Tensor)"
            )
        if got.shape != expected.value.shape:
            shape = tuple(expected.value.shape)
            said = f"{expression} has shape {tuple(got.shape)}, expected {shape}"
            self.fail(said, f"{expression}.shape == {shape}")
        got64, value, bound = (each.detach().to("cpu", torch.float64) for each in (got, *expected))
        if bound.numel():
            self._count(bound, axis)
        right = (got64 - value).abs() <= bound
        if not bool(right.all()):
            limit = torch.finfo(got.dtype).max if got.dtype.is_floating_point else math.inf
            past = got64.isinf() & (got64.sign() == value.sign()) & (value.abs() + bound > limit)
            right = right | bound.isinf() | past
        if not bool(right.all()):
            self._report(expression, got64, value, bound, ~right, axis)

    def _count(self, bound: Tensor, axis: int) -> None:
        share = 0.0
        if not bool(bound.isfinite().all()):
            if bound.isnan().any():
                raise GateError(f"{self.law}: a bound is NaN, so nothing was compared")
            share = int(_by_channel(bound, axis).isinf().any(1).sum()) / bound.shape[axis]
        self.tally.ill_posed += share
        self.tally.posed += 1 - share

    def _report(
        self, expression: str, got: Tensor, value: Tensor, bound: Tensor, wrong: Tensor, axis: int
    ) -> NoReturn:
        ratio = torch.where(wrong, (got - value).abs() / bound, torch.zeros_like(bound))
        ratio = ratio.nan_to_num(nan=math.inf, posinf=math.inf)
        by_channel = [_by_channel(each, axis) for each in (ratio, got, value, bound, wrong)]
        rows = []
        bad = by_channel[4].any(1).nonzero().flatten().tolist()
        for c in bad[:_SHOWN]:
            i = int(by_channel[0][c].argmax())
            r, g, v, b = (float(t[c, i]) for t in by_channel[:4])
            rows.append(f"  {c:>7}  {i:>5}  {v:<23.16g}  {g:<23.16g}  {b:<9.2g}  {r:.3g}")
        more = [f"  and {len(bad) - _SHOWN} more channels"] if len(bad) > _SHOWN else []
        head = f"  channel     at  {'expected':23}  {'got':23}  {'bound':9}  error/bound"
        count = f"{len(bad)} of {len(by_channel[4])} channels"
        self._lines.append(
            lambda: [
                f"expected = {literal(value)}",
                f"bound = {literal(bound)}",
            ]
        )
        self.fail(
            f"{expression} is off in {count}",
            f"(({expression}).detach().cpu().double() - expected).abs().le(bound).all()",
            table=[head, *rows, *more],
        )

    def require(self, condition: str, message: str) -> None:
        """Hold that an expression is true.

        Args:
            condition: the expression.
            message: what is said if it is not; braces hold expressions.
        """
        if not self.evaluate(condition):
            self.fail(self._filled(message), condition)

    def _filled(self, message: str) -> str:
        """Return a message with the values of the expressions in its braces."""
        return re.sub(r"\{(.+?)\}", lambda match: _brief(self.evaluate(match[1])), message)

    def check_same(self, first: str, second: str, what: str) -> None:
        """Hold that two tensors have the same dtype, shape and values, NaN equal to NaN."""
        a, b = self.evaluate(first), self.evaluate(second)
        equal = (
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and bool(((a == b) | ((a != a) & (b != b))).all())
        )
        if not equal:
            exactly = "rtol=0, atol=0, equal_nan=True"
            code = f"torch.testing.assert_close({first}, {second}, {exactly}) is None"
            self.fail(f"{what}: {_brief(a)}, and it was {_brief(b)}", code)

    def check_raises(self, line: str, *kinds: type[Exception]) -> None:
        """Hold that a line raises one of these errors."""
        raised: Exception | None = None
        try:
            exec(_compiled(line, "exec"), self._names)
        except kinds:
            return
        except Exception as error:  # another error is a finding, too
            raised = error
        self._lines.append(line)
        names = " or ".join(kind.__name__ for kind in kinds)
        got = "nothing" if raised is None else f"{type(raised).__name__} ({raised})"
        check = "False" if raised is None else None
        self.fail(f"`{line}` raised {got}, expected {names}", check, cause=raised)

    def fail(
        self,
        said: str,
        check: str | None,
        *,
        table: list[str] | None = None,
        cause: Exception | None = None,
    ) -> NoReturn:
        """Raise that the law is broken.

        Args:
            said: the news, one line.
            check: an expression that the snippet asserts; None: its last line raises.
            table: expected and got.
            cause: what the layer raised.
        """
        case = self.case
        head = f"{self.subject.label} breaks the law {self.law}: {said}"
        snippet = self._snippet(check)
        settings = f"{case.dtype} on {case.device}, state in {case.state_dtype}"
        text = [head, "", f"law   {self.statement}", f"case  {settings}; {_described(case)}"]
        text += ["", *table] if table else []
        text += ["", "this reproduces it:", "", *(f"    {line}" for line in snippet)]
        raise LawBroken("\n".join(text), self.law, "\n".join(snippet)) from cause

    def _snippet(self, check: str | None) -> list[str]:
        lines = ["import torch", self.subject.import_line(), ""]
        for each in self._lines:
            lines += [each] if isinstance(each, str) else each()
        if check is not None:
            lines.append(f"assert {check}")
        return [part for line in lines for part in line.split("\n")]


def _by_channel(values: Tensor, axis: int) -> Tensor:
    """Return values as rows, one a channel."""
    return values.transpose(0, axis).flatten(1) if values.dim() > 1 else values[:, None]


def _brief(value: object) -> str:
    if isinstance(value, Tensor):
        many = value.numel() > _SHOWN
        shown = f"shape {tuple(value.shape)}" if many else str(value.detach().cpu().tolist())
        return f"{shown} ({str(value.dtype).removeprefix('torch.')})"
    return repr(value)


def _described(case: Case) -> str:
    shapes = ", ".join(
        f"{batch.shape} {batch.layout}" + (f" at {batch.kappa:g} sigma" if batch.kappa else "")
        for batch in case.batches
    )
    modes = ", ".join("train" if training else "eval" for training in case.modes)
    return f"batches {shapes}; modes {modes}"
