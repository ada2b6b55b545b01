"""One law's run on one layer: it runs lines of code and keeps them.

A law is written in lines such as `y = layer(x)`, so a failure prints exactly the code that ran.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from textwrap import shorten
from typing import Any, NoReturn

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.arithmetic import Arithmetic
from pytest_bninvariants.batchnorm.cases import Batch, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm
from pytest_bninvariants.batchnorm.trials.comparison import ComparisonTally, TensorComparison
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.batchnorm.trials.report import brief, describe_case, law_report
from pytest_bninvariants.batchnorm.trials.script import Script
from pytest_bninvariants.errors import LawBroken


def layer_line(subject: LayerUnderTest, case: Case, arguments: Mapping[str, Any]) -> str:
    """Return the line that makes the layer of a case, as `layer`, in a new layer's state.

    Args:
        subject: the layer under test.
        case: the case.
        arguments: arguments of the constructor, in place of the case's.
    """
    defaults = subject.declaration.defaults  # a snippet leaves them out
    settings = case.settings() | dict(arguments)
    settings = {k: each for k, each in settings.items() if k not in defaults or each != defaults[k]}
    device = "" if case.device == "cpu" else f"'{case.device}', "
    cast = f".to({device}torch.{case.state_dtype})"
    if cast == ".to(torch.float32)":
        cast = ""
    return f"layer = {subject.call(case.channels, **settings)}{cast}"


def reference_in_state(
    case: Case, arguments: Mapping[str, Any]
) -> tuple[ReferenceBatchNorm, Arithmetic]:
    """Return the reference in a case's state, and the arithmetic of the case's dtypes."""
    reference = ReferenceBatchNorm(case.channels, **case.settings() | dict(arguments))
    with torch.no_grad():
        for name, value in case.state().items():
            tensor = getattr(reference, name)
            if tensor is not None:
                tensor.copy_(value)
        if reference.num_batches_tracked is not None:
            reference.num_batches_tracked.fill_(case.count)
    input_dtype, state_dtype = (getattr(torch, n) for n in (case.dtype, case.state_dtype))
    return reference, Arithmetic.for_dtypes(input_dtype, state_dtype)


class LawTrial:
    """Run a law's lines on a layer.

    Args:
        law: the law's name.
        statement: the law's statement.
        subject: the layer under test.
        case: how to make the layer, and its batches.
        tally: the tally that counts comparisons.
    """

    def __init__(
        self,
        law: str,
        statement: str,
        subject: LayerUnderTest,
        case: Case,
        tally: ComparisonTally,
    ) -> None:
        self.law, self.statement, self.subject, self.case = law, statement, subject, case
        self.tally = tally
        names = {"torch": torch, subject.name: subject.factory}
        self._script = Script(["import torch", subject.import_line()], names)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression; if it raises, the law is broken."""
        try:
            return self._script.evaluate(expression)
        except Exception as error:  # whatever the layer raises is the finding
            self._script.keep(expression)
            self._fail_raising(expression, error)

    def run(self, *lines: str) -> None:
        """Run lines of code; if one raises, the law is broken."""
        for line in lines:
            try:
                self._script.run(line)
            except Exception as error:  # whatever the layer raises is the finding
                self._fail_raising(line, error)

    def _fail_raising(self, line: str, error: Exception) -> NoReturn:
        told = shorten(line, 100, placeholder=" ...") if "\n" in line else line
        self.fail(f"`{told}` raised {type(error).__name__}: {error}", None, cause=error)

    def for_case(self, case: Case) -> LawTrial:
        """Return a new trial of the same law, on another case."""
        return LawTrial(self.law, self.statement, self.subject, case, self.tally)

    def make_layer(self, **arguments: Any) -> None:
        """Make the layer of the case, as `layer`, in a new layer's state.

        Args:
            arguments: arguments of the constructor, in place of the case's.
        """
        self.run(layer_line(self.subject, self.case, arguments))

    def build_layer(self, **arguments: Any) -> None:
        """Make the layer of the case, in its state, as `layer`; arguments as `make_layer`."""
        case = self.case
        self.make_layer(**arguments)
        for name, value in case.state().items():
            if not isinstance(self.evaluate(f"getattr(layer, {name!r}, None)"), Tensor):
                self.fail(f"the layer has no tensor {name!r}", f"hasattr(layer, {name!r})")
            source = partial(case.state_source, name, value)
            self._script.bind("value", value, source)
            self.run(f"layer.{name}.data.copy_(value)")
        if case.count and self.evaluate("getattr(layer, 'num_batches_tracked', None) is not None"):
            self.run(f"layer.num_batches_tracked.fill_({case.count})")

    def make_twin(self, **arguments: Any) -> ReferenceTwin:
        """Return the reference in the case's state, with bounds; arguments as `make_layer`."""
        return ReferenceTwin(*reference_in_state(self.case, arguments))

    def bind_value(self, name: str, value: Tensor) -> None:
        """Bind a name to a copy of a tensor; a report prints the values that it has now."""
        self._script.bind_value(name, value)

    def bind_batch(self, batch: Batch, *, grad: bool = False) -> Tensor:
        """Bind `x` to a batch, and return it."""
        x = batch.tensor(self.case.device)
        self._script.bind("x", x, partial(batch.source, self.case.device))
        if grad:
            self.run("x = x.detach().requires_grad_()")
        return x.detach()

    def run_backward(self, index: int) -> Tensor:
        """Run the backward of the case's loss, and return the gradient of the output."""
        if self.case.plain_gradient:
            self.run("y.sum().backward()")
            return torch.ones(self.case.batches[index].shape, device="cpu")
        g = self.bind_gradient(index)
        self.run("y.backward(g)")
        return g

    def bind_gradient(self, index: int = 0, name: str = "g") -> Tensor:
        """Bind a name to a random gradient of a batch's output, and return it."""
        g, case = self.case.gradient(index), self.case
        self._script.bind(name, g.clone(), lambda: [f"{name} = {case.gradient_source(index)}"])
        return g

    def check_close(self, expression: str, expected: BoundedValue, *, axis: int = 0) -> None:
        """Check that a tensor is as near to its true value as rounding allows.

        Args:
            expression: the tensor.
            expected: the true value and the bound.
            axis: the axis of channels.
        """
        got = self.evaluate(expression)
        if not isinstance(got, Tensor):
            self.fail(
                f"{expression} is {got!r}, not a tensor", f"isinstance({expression}, torch.Tensor)"
            )
        if got.shape != expected.value.shape:
            shape = tuple(expected.value.shape)
            news = f"{expression} has shape {tuple(got.shape)}, expected {shape}"
            self.fail(news, f"{expression}.shape == {shape}")
        comparison = TensorComparison.from_tensors(got, expected, axis)
        if got.numel():
            self.tally.add_comparison(comparison, self.law)
        wrong = comparison.wrong()
        if bool(wrong.any()):
            self._fail_far_off(expression, comparison, wrong)

    def _fail_far_off(
        self, expression: str, comparison: TensorComparison, wrong: Tensor
    ) -> NoReturn:
        count, table = comparison.table(wrong)
        self._script.keep(partial(comparison.source, wrong))
        check = comparison.check(expression, wrong)
        self.fail(f"{expression} is off in {count}", check, table=table)

    def check_same(self, first: str, second: str, what: str) -> None:
        """Check that two tensors have the same dtype, shape and values, NaN equal to NaN."""
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
            self.fail(f"{what}: {brief(a)}, and it was {brief(b)}", code)

    def require(self, condition: str, message: str) -> None:
        """Check that an expression is true.

        Args:
            condition: the expression.
            message: what is wrong if it is not; expressions in braces are replaced by their values.
        """
        if not self.evaluate(condition):
            self.fail(self._filled(message), condition)

    def _filled(self, message: str) -> str:
        """Return a message with the values of the expressions in its braces."""
        return re.sub(r"\{(.+?)\}", lambda match: brief(self.evaluate(match[1])), message)

    def check_raises(self, line: str, *kinds: type[Exception]) -> None:
        """Check that a line raises one of these errors."""
        raised: Exception | None = None
        try:
            self._script.try_out(line)
        except kinds:
            expected = ", ".join(kind.__name__ for kind in kinds)
            self._script.keep(f"try: {line}\nexcept ({expected}): pass")
            return
        except Exception as error:  # another error is a finding, too
            raised = error
        names = " or ".join(kind.__name__ for kind in kinds)
        got = "nothing" if raised is None else f"{type(raised).__name__} ({raised})"
        expected = ", ".join(kind.__name__ for kind in kinds)
        self._script.keep(f"try:\n    {line}\nexcept ({expected}):\n    pass\nelse:")
        self._script.keep(f"    raise AssertionError('nothing raised, expected {names}')")
        self.fail(f"`{line}` raised {got}, expected {names}", None, cause=raised)

    def fail(
        self,
        news: str,
        check: str | None,
        *,
        table: list[str] | None = None,
        cause: Exception | None = None,
    ) -> NoReturn:
        """Raise that the law is broken.

        Args:
            news: what is wrong, one line.
            check: an expression that the snippet asserts; None: its last line raises.
            table: expected and got.
            cause: what the layer raised.
        """
        headline = f"{self.subject.label} breaks the law {self.law}: {news}"
        snippet = self._script.text(check)
        layer = self._script.get("layer")
        described = describe_case(self.case, layer)
        report = law_report(headline, self.statement, described, table or [], snippet)
        raise LawBroken(report, self.law, "\n".join(snippet)) from cause
