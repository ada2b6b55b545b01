"""Laws of a BatchNorm without parameters or statistics, and of settings that change."""

from __future__ import annotations

from dataclasses import replace

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, DENSE, Case
from pytest_bninvariants.batchnorm.expectation import ReferenceTwin
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.laws.steps import (
    KEEP_VALUES,
    build_in_mode,
    check_state_unchanged,
    check_training_results,
    run_forward,
    set_mode,
)
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial
from pytest_bninvariants.option_values import HALF


@law(
    ("float32",),
    share=0.3,
    modes=(True, True),
    layouts=CONTIGUOUS,
    max_values=256,
    needs=("eps", "momentum", "num_batches_tracked"),
)
def settings_are_read(trial: LawTrial, case: Case) -> None:
    """momentum and eps take effect when they are set, as recipes that change them rely on."""
    momentum, first = case.momentum, None if case.count % 2 else 0.25
    trial.case = replace(case, count=case.count % 8)
    trial.build_layer(eps=0.5, momentum=first)
    twin = trial.make_twin(eps=0.5, momentum=first)
    set_mode(trial, twin, training=True)
    check_training_results(trial, twin, run_forward(trial, twin))
    trial.run(f"layer.eps, layer.momentum = {case.eps!r}, {momentum!r}")
    twin.reference.eps, twin.reference.momentum = case.eps, momentum
    check_training_results(trial, twin, run_forward(trial, twin, 1))
    set_mode(trial, twin, training=False)
    trial.check_close("y", run_forward(trial, twin, 1).output, axis=1)


@law(share=0.3, affine=False, tracking=None, layouts=DENSE)
def affine_off(trial: LawTrial, case: Case) -> None:
    """With affine=False there are no parameters, and the output is as with weight 1 and bias 0.

    With bias=False, where the constructor takes that, there is a weight and no bias. With a weight
    that is set to None, the bias is left.
    """
    for each in _in_precisions(trial, case):
        _check_without_affine(each, each.case)


def _in_precisions(trial: LawTrial, case: Case) -> list[LawTrial]:
    """Return a trial of the case, and for half input one with the state in float32, if any."""
    has_state = case.affine or case.track_running_stats
    mixed = [replace(case, state_dtype="float32")] if case.dtype in HALF and has_state else []
    return [trial.for_case(each) for each in (case, *mixed)]


def _check_without_affine(trial: LawTrial, case: Case) -> None:
    twin = build_in_mode(trial, training=True)
    trial.require(
        "layer.weight is None and layer.bias is None and not list(layer.parameters())",
        "there are parameters: weight is {layer.weight}",
    )
    _hold_outputs(trial, twin)
    if trial.subject.takes("bias"):
        without = trial.for_case(replace(case, affine=True, bias=False))
        twin = build_in_mode(without, training=True)
        without.require(
            "layer.bias is None and list(layer.parameters()) == [layer.weight]",
            "bias=False gives the bias {layer.bias} and the weight {layer.weight}",
        )
        _hold_outputs(without, twin)

    if case.dtype == "float32":
        _check_bias_alone(trial.for_case(replace(case, affine=True)))


def _check_bias_alone(trial: LawTrial) -> None:
    twin = build_in_mode(trial, training=True)
    trial.run("layer.weight = None")
    twin.reference.weight = None
    expected = run_forward(trial, twin, grad=True)
    trial.check_close("y", expected.output, axis=1)
    of_input, _, of_bias = expected.gradients(trial.run_backward(0))
    trial.check_close("x.grad", of_input, axis=1)
    trial.check_close("layer.bias.grad", of_bias)


def _hold_outputs(trial: LawTrial, twin: ReferenceTwin) -> None:
    """Check a pass in training, and, if statistics are stored, one in eval."""
    _check_pass(trial, twin)
    if trial.case.track_running_stats:
        set_mode(trial, twin, training=False)
        _check_pass(trial, twin)


def _check_pass(trial: LawTrial, twin: ReferenceTwin) -> None:
    """Check output and gradients, and, in training, the statistics if they are tracked."""
    if trial.case.affine:
        trial.run("layer.zero_grad()")
    expected = run_forward(trial, twin, grad=True)
    trial.require("y.dtype == x.dtype", "the output is {y.dtype}, the input {x.dtype}")
    trial.check_close("y", expected.output, axis=1)
    if trial.case.track_running_stats:
        trial.check_close("layer.running_mean", twin.running_mean)
        trial.check_close("layer.running_var", twin.running_var)
    g = trial.bind_gradient()
    trial.run("y.backward(torch.empty_like(y).copy_(g))")  # laid out as the output is
    of_input, of_weight, _ = expected.gradients(g)
    trial.check_close("x.grad", of_input, axis=1)
    if trial.case.affine:
        trial.check_close("layer.weight.grad", of_weight)
    if not (twin.reference.training and trial.case.track_running_stats):
        trial.run("with torch.no_grad():\n    y = layer(x)")
        trial.check_close("y", expected.output, axis=1)


@law(share=0.3, affine=None, tracking=False, layouts=DENSE)
def tracking_off(trial: LawTrial, case: Case) -> None:
    """With track_running_stats=False there are no buffers, and eval uses batch statistics, too."""
    for each in _in_precisions(trial, case):
        _check_without_tracking(each)
    if case.dtype == "float32" and "momentum" not in trial.subject.fixed:
        _check_without_tracking(trial.for_case(replace(case, momentum=None)))


def _check_without_tracking(trial: LawTrial) -> None:
    twin = build_in_mode(trial, training=True)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        trial.require(f"layer.{name} is None", f"{name} is {{layer.{name}}}, expected None")
    trial.require("not list(layer.buffers())", "there are buffers")
    for training in (True, False):
        set_mode(trial, twin, training=training)
        _check_pass(trial, twin)


@law(("float32",), share=0.5, needs=("track_running_stats",))
def tracking_switched_off(trial: LawTrial, case: Case) -> None:
    """With track_running_stats set to False later, training updates no statistics; eval uses them.

    If they are then set to None, as in test-time adaptation, eval uses the batch's.
    """
    twin = build_in_mode(trial, training=True)
    trial.run("layer.track_running_stats = False", KEEP_VALUES)
    twin.reference.track_running_stats = False
    trial.check_close("y", run_forward(trial, twin).output, axis=1)
    check_state_unchanged(trial, "training without tracking")
    set_mode(trial, twin, training=False)
    trial.check_close("y", run_forward(trial, twin).output, axis=1)
    trial.run("layer.running_mean = layer.running_var = None")
    trial.check_close(
        "y", run_forward(trial, trial.make_twin(track_running_stats=False)).output, axis=1
    )
