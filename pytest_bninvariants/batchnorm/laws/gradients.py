"""Laws of a BatchNorm's gradients."""

from __future__ import annotations

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue
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
