"""Laws of a BatchNorm's gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.expectation import (
    BatchExpectation,
    BoundedValue,
    ReferenceTwin,
)
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.laws.steps import (
    EVAL_CASES,
    build_in_mode,
    check_training_results,
    run_forward,
)
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial

_OF_LAYER = "layer.weight, layer.bias"


def _gradients(
    trial: LawTrial, case: Case, *, training: bool, grad: bool = False, frozen: str = ""
) -> tuple[BoundedValue, BoundedValue, BoundedValue]:
    twin = build_in_mode(trial, training=training)
    if frozen and case.seed is not None and case.seed % 2:
        trial.run(f"{frozen}.requires_grad_(False)")
    expected = run_forward(trial, twin, grad=grad)
    return expected.gradients(trial.run_backward(0))


@law()
def input_gradient(trial: LawTrial, case: Case) -> None:
    """In training d x is w r (g - mean(g) - xh mean(g xh)): statistics depend on x."""
    trial.check_close(
        "x.grad", _gradients(trial, case, training=True, grad=True, frozen="layer")[0], axis=1
    )


@law()
def weight_gradient(trial: LawTrial, case: Case) -> None:
    """In training d weight is the sum over a channel of g xh."""
    gradients = _gradients(trial, case, training=True, frozen="layer.bias")
    trial.check_close("layer.weight.grad", gradients[1])


@law()
def bias_gradient(trial: LawTrial, case: Case) -> None:
    """In training d bias is the sum over a channel of g."""
    gradients = _gradients(trial, case, training=True, frozen="layer.weight")
    trial.check_close("layer.bias.grad", gradients[2])


@law(frozen=True, **EVAL_CASES)
def eval_input_gradient(trial: LawTrial, case: Case) -> None:
    """In eval d x is w r g: statistics are constants."""
    trial.check_close(
        "x.grad", _gradients(trial, case, training=False, grad=True, frozen="layer")[0], axis=1
    )


@law(**EVAL_CASES)
def eval_weight_gradient(trial: LawTrial, case: Case) -> None:
    """In eval d weight is the sum over a channel of g xh, of stored statistics."""
    gradients = _gradients(trial, case, training=False, frozen="layer.bias")
    trial.check_close("layer.weight.grad", gradients[1])


@law(**EVAL_CASES)
def eval_bias_gradient(trial: LawTrial, case: Case) -> None:
    """In eval d bias is the sum over a channel of g."""
    gradients = _gradients(trial, case, training=False, frozen="layer.weight")
    trial.check_close("layer.bias.grad", gradients[2])


@law(("float32",), share=0.05, layouts=CONTIGUOUS, max_values=256)
def needed_gradients(trial: LawTrial, case: Case) -> None:
    """Whichever of input, weight and bias need gradients, these are right, and others have none.

    Output and statistics do not depend on that.
    """
    needs = [needed for needed in product((True, False), repeat=3) if any(needed)]
    for training, needed in product((True, False), needs):
        _need(trial.for_case(case), needed, training=training)


def _need(trial: LawTrial, needed: tuple[bool, ...], *, training: bool) -> None:
    twin = build_in_mode(trial, training=training)
    trial.run(
        f"layer.weight.requires_grad_({needed[1]})", f"layer.bias.requires_grad_({needed[2]})"
    )
    expected = run_forward(trial, twin, grad=needed[0])
    check_training_results(trial, twin, expected)
    gradients = expected.gradients(trial.run_backward(0))
    for index, name in enumerate(("x", "layer.weight", "layer.bias")):
        if needed[index]:
            trial.check_close(f"{name}.grad", gradients[index], axis=int(index == 0))
        else:
            trial.require(f"{name}.grad is None", f"{name}, which needs none, has a gradient")


@law(("float32",), share=0.3, layouts=CONTIGUOUS, max_values=256)
def gradients_accumulate(trial: LawTrial, case: Case) -> None:
    """A second backward adds to the gradients that are there, of a new graph or a kept one.

    A gradient of the output times 2^24, as of a scaled loss, or 2^-40, gives as many times as much.
    """
    trial.bind_gradient()
    for again in ("layer(x).backward(g)", "y.backward(g)"):
        build_in_mode(trial, training=True)
        trial.bind_batch(case.batches[0], grad=True)
        trial.run("y = layer(x)", "y.backward(g, retain_graph=True)")
        trial.run("once = [each.grad.clone() for each in (x, layer.weight, layer.bias)]", again)
        for index, name in enumerate(("x.grad", "layer.weight.grad", "layer.bias.grad")):
            trial.check_same(
                name, f"2 * once[{index}]", f"{name} after a second backward is not twice the first"
            )
    for scale in ("2.0**24", "2.0**-40"):
        for training in (True, False):
            _scales(trial.for_case(case), scale, training=training)


def _scales(trial: LawTrial, scale: str, *, training: bool) -> None:
    """Check that gradients grow and shrink with that of the output, by a power of two."""
    build_in_mode(trial, training=training)
    trial.bind_batch(trial.case.batches[0], grad=True)
    trial.bind_gradient()
    trial.run(f"inputs = x, {_OF_LAYER}", "y = layer(x)")
    trial.run("once = torch.autograd.grad(y, inputs, g, retain_graph=True)")
    trial.run(f"scaled = torch.autograd.grad(y, inputs, {scale} * g)")
    for index, name in enumerate(("x", "weight", "bias")):
        what = f"{scale} times the gradient of the output is not so many times that of {name}"
        trial.check_same(f"scaled[{index}]", f"{scale} * once[{index}]", what)


@law(("float32",), share=0.3, modes=(True, True), layouts=CONTIGUOUS, max_values=256)
def graphs_are_independent(trial: LawTrial, case: Case) -> None:
    """Each forward has its own graph, which autograd differentiates without touching .grad.

    It is the graph of the mode that the layer was in then.
    """
    twin = build_in_mode(trial, training=True)
    expected = run_forward(trial, twin, grad=True)
    trial.run("first, y_of_first = x, y")
    run_forward(trial, twin, 1)
    g = trial.bind_gradient()
    trial.run("layer.eval()")  # as a validation between forward and backward does
    wanted = "(first, layer.weight, layer.bias)"
    trial.run(f"gradients = torch.autograd.grad(y_of_first, {wanted}, g)")
    for index, gradient in enumerate(expected.gradients(g)):
        trial.check_close(f"gradients[{index}]", gradient, axis=int(index == 0))
    trial.require(
        f"all(each.grad is None for each in {wanted})", "torch.autograd.grad left a .grad behind"
    )


@law(("float32", "bfloat16"), share=0.3, affine=None, layouts=CONTIGUOUS, max_values=256)
def output_written_in_place(trial: LawTrial, case: Case) -> None:
    """The output may be written in place before backward, as ReLU(inplace=True) behind it does.

    If the input or a parameter is written, backward raises RuntimeError or gives the gradients all
    the same.
    """
    for training in (True, False):
        _output_written(trial.for_case(case), training=training)
        if case.dtype == "float32" and case.affine:
            _input_written(trial.for_case(case), "z.mul_(2).add_(1)", training=training)
            written = "with torch.no_grad():\n    layer.weight.mul_(2).add_(1)"
            _input_written(trial.for_case(case), written, training=training)


def _output_written(trial: LawTrial, *, training: bool) -> None:
    twin = build_in_mode(trial, training=training)
    expected = run_forward(trial, twin, grad=True)
    g = trial.bind_gradient()
    trial.run("y.mul_(2)", "y.backward(g)")
    names = ("x", "layer.weight", "layer.bias")[: 3 if trial.case.affine else 1]
    for index, name in enumerate(names):
        gradient = expected.gradients(2 * g)[index]
        trial.check_close(f"{name}.grad", gradient, axis=int(index == 0))
    trial.bind_batch(trial.case.batches[0])
    trial.run("with torch.no_grad():\n    layer(x).fill_(7)")
    if training:
        twin.expect(trial.evaluate("x"))
    trial.check_close("layer(x)", twin.expect(trial.evaluate("x")).output, axis=1)


def _input_written(trial: LawTrial, written: str, *, training: bool) -> None:
    twin = build_in_mode(trial, training=training)
    x = trial.bind_batch(trial.case.batches[0], grad=True)
    trial.run("z = x * 1", "y = layer(z)", written)
    g = trial.bind_gradient()
    trial.run("refused = False")
    trial.run("try:\n    y.backward(g)\nexcept RuntimeError:\n    refused = True")
    if not trial.evaluate("refused"):
        of_input, of_weight, _ = twin.expect(x).gradients(g)
        trial.check_close("x.grad", of_input, axis=1)
        trial.check_close("layer.weight.grad", of_weight)


@law(("float32",), share=0.05, layouts=CONTIGUOUS, max_values=256)
def workspaces(trial: LawTrial, case: Case) -> None:
    """Of two layers and batches of one shape, no call or backward changes what another one gives.

    That holds whatever order they run in, in training and in eval.
    """
    for training in (True, False):
        _interleave(trial.for_case(case), training=training)
        _interleave_without_graph(trial.for_case(case), training=training)


def _interleave(trial: LawTrial, *, training: bool) -> None:
    """Run forward on three batches, two of them on one layer; then backward in another order."""
    other, twin = _two_layers(trial, training=training)
    x = trial.bind_batch(trial.case.batches[0])
    g = trial.bind_gradient()
    trial.run(
        "xs = [x.clone().requires_grad_(), (x.flip(0) + 1).requires_grad_(), "
        "(2 * x - 1).requires_grad_()]",
        "gs = [g, g.cos(), g.flip(0)]",
        "ys = [layer(xs[0]), other(xs[1]), layer(xs[2])]",
    )
    expected = [twin.expect(x), other.expect(x.flip(0) + 1), twin.expect(2 * x - 1)]
    for index, owner in ((1, "other"), (2, "layer"), (0, "layer")):
        of = f"(xs[{index}], {_OF_LAYER.replace('layer', owner)})"
        trial.run(f"of_{index} = torch.autograd.grad(ys[{index}], {of}, gs[{index}])")
    for index, gradient in enumerate((g, g.cos(), g.flip(0))):
        trial.check_close(f"ys[{index}]", expected[index].output, axis=1)
        for which, value in enumerate(expected[index].gradients(gradient)):
            trial.check_close(f"of_{index}[{which}]", value, axis=int(which == 0))
    _add_up(trial, expected[::2], (g, g.flip(0)))


def _add_up(
    trial: LawTrial, expected: list[BatchExpectation], gradients: tuple[torch.Tensor, ...]
) -> None:
    """Check that .grad adds up what two backwards give, the second of another batch."""
    trial.run("for i in (0, 2):\n    layer(xs[i]).backward(gs[i])")
    pairs = [each.gradients(g) for each, g in zip(expected, gradients, strict=True)]
    for which, name in ((1, "weight"), (2, "bias")):
        (one, one_bound), (two, two_bound) = (each[which] for each in pairs)
        rounding = (one.abs() + two.abs()) * 2.0**-23
        total = BoundedValue(one + two, one_bound + two_bound + rounding)
        trial.check_close(f"layer.{name}.grad", total)


def _interleave_without_graph(trial: LawTrial, *, training: bool) -> None:
    other, twin = _two_layers(trial, training=training)
    x = trial.bind_batch(trial.case.batches[0])
    trial.run("with torch.no_grad():\n    ys = [layer(x), other(x.flip(0) + 1), layer(2 * x - 1)]")
    expected = [twin.expect(x), other.expect(x.flip(0) + 1), twin.expect(2 * x - 1)]
    for index, each in enumerate(expected):
        trial.check_close(f"ys[{index}]", each.output, axis=1)


def _two_layers(trial: LawTrial, *, training: bool) -> tuple[ReferenceTwin, ReferenceTwin]:
    """Make `other` and `layer`, of other states and another eps, and return their twins."""
    case = trial.case
    eps = case.eps if "eps" in trial.subject.fixed else min(1.0, 4 * case.eps)
    seed = None if case.seed is None else case.seed + 5  # the same special values of the weight
    trial.case = replace(case, eps=eps, seed=seed)
    other = build_in_mode(trial, training=training)
    trial.run("other = layer")
    trial.case = case
    return other, build_in_mode(trial, training=training)
