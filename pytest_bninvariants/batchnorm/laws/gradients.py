"""Laws of a BatchNorm's gradients."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.laws.steps import EVAL_CASES, build_in_mode, run_forward
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial


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


@law(("float32",), share=0.3, layouts=CONTIGUOUS, max_values=256)
def gradients_accumulate(trial: LawTrial, case: Case) -> None:
    """A second backward adds to the gradients that are there, of a new graph or a kept one."""
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


@law(("float32",), share=0.3, layouts=CONTIGUOUS, max_values=256)
def output_written_in_place(trial: LawTrial, case: Case) -> None:
    """The output may be written in place before backward, as ReLU(inplace=True) behind it does.

    If the input is written, backward raises RuntimeError or gives the gradients all the same.
    """
    for training in (True, False):
        twin = build_in_mode(trial, training=training)
        expected = run_forward(trial, twin, grad=True)
        g = trial.bind_gradient()
        trial.run("y.mul_(2)", "y.backward(g)")
        for index, gradient in enumerate(expected.gradients(2 * g)):
            name = ("x", "layer.weight", "layer.bias")[index]
            trial.check_close(f"{name}.grad", gradient, axis=int(index == 0))
        _input_written(trial, training=training)


def _input_written(trial: LawTrial, *, training: bool) -> None:
    twin = build_in_mode(trial, training=training)
    x = trial.bind_batch(trial.case.batches[0], grad=True)
    trial.run("z = x * 1", "y = layer(z)", "z.mul_(2).add_(1)")
    g = trial.bind_gradient()
    trial.run("refused = False")
    trial.run("try:\n    y.backward(g)\nexcept RuntimeError:\n    refused = True")
    if not trial.evaluate("refused"):
        of_input, of_weight, _ = twin.expect(x).gradients(g)
        trial.check_close("x.grad", of_input, axis=1)
        trial.check_close("layer.weight.grad", of_weight)


@law(("float64",), share=0.5, layouts=CONTIGUOUS, max_values=128, needs=("eps",))
def double_backward(trial: LawTrial, case: Case) -> None:
    """The gradient of the input can be differentiated again, in training and in eval.

    Held to half of float64's digits, on well-conditioned data: this is about formulas.
    """
    trial.case = case = _well_conditioned(case)
    training = case.count != 1
    twin = build_in_mode(trial, training=training)
    x = trial.bind_batch(case.batches[0], grad=True)
    g = trial.bind_gradient()
    v = g.flip(0).sin()
    trial.run("v = g.flip(0).sin()", "g.requires_grad_()", "y = layer(x)")
    trial.run("first, of_weight = torch.autograd.grad(y, (x, layer.weight), g, create_graph=True)")
    trial.run("loss = (first * v).sum() + (first * first).sum() + (of_weight * of_weight).sum()")
    trial.run("of = (x, g, layer.weight)")
    trial.run("second = torch.autograd.grad(loss, of, materialize_grads=True)")
    x64 = x.cpu().clone().requires_grad_()
    g64 = g.detach().cpu().clone().requires_grad_()
    y64 = twin.reference(x64)
    weight = twin.reference.weight
    assert weight is not None
    first, of_weight = torch.autograd.grad(y64, (x64, weight), g64, create_graph=True)
    loss = (first * v.cpu()).sum() + first.square().sum() + of_weight.square().sum()
    seconds = torch.autograd.grad(loss, (x64, g64, weight), materialize_grads=True)
    for index, value in enumerate(seconds):
        trial.check_close(f"second[{index}]", _half_the_digits(value), axis=int(index < 2))


@law(("float64",), share=0.3, layouts=CONTIGUOUS, max_values=128, needs=("eps",))
def forward_derivative(trial: LawTrial, case: Case) -> None:
    """Forward-mode AD gives the derivative of the output, by input, weight and bias, in both modes.

    Held to half of float64's digits, on well-conditioned data: this is about formulas.
    """
    trial.case = case = _well_conditioned(case)
    twin = build_in_mode(trial, training=case.count != 1)
    x = trial.bind_batch(case.batches[0])
    t = trial.bind_gradient(name="t")
    trial.run("from torch.autograd import forward_ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns when it first loads its jvp decompositions
        _derive(trial, twin, x, t)


def _derive(trial: LawTrial, twin: ReferenceTwin, x: torch.Tensor, t: torch.Tensor) -> None:
    trial.run(
        "with forward_ad.dual_level():\n"
        "    derivative = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, t))).tangent",
    )
    twin.reference.track_running_stats = False  # torch.func.jvp takes no module that updates itself
    value = torch.func.jvp(twin.reference, (x.cpu(),), (t.cpu(),))[1].detach()
    trial.check_close("derivative", _half_the_digits(value), axis=1)
    trial.run(
        "with forward_ad.dual_level():\n"
        "    twice = {k: forward_ad.make_dual(v, 2 * v) for k, v in layer.named_parameters()}\n"
        "    derivative = forward_ad.unpack_dual("
        "torch.func.functional_call(layer, twice, (x,))).tangent",
    )
    trial.check_close("derivative", _half_the_digits(2 * twin.reference(x.cpu()).detach()), axis=1)


def _well_conditioned(case: Case) -> Case:
    batch = replace(case.batches[0], kappa=min(case.batches[0].kappa, 1.0), sigma=1.0)
    return replace(case, batches=(batch,), eps=max(case.eps, 1e-3))


def _half_the_digits(value: torch.Tensor) -> BoundedValue:
    return BoundedValue(value, torch.full_like(value, 2.0**-26 * (1 + float(value.abs().max()))))
