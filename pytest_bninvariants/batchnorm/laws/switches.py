"""Laws of a BatchNorm without parameters or statistics, and of settings that change."""

from __future__ import annotations

from dataclasses import replace

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
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


@law(("float64", "float32"), share=0.5, affine=False, tracking=None)
def affine_off(trial: LawTrial, case: Case) -> None:
    """With affine=False there are no parameters, and the output is as with weight 1 and bias 0.

    With bias=False, where the constructor takes that, there is a weight and no bias.
    """
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


def _hold_outputs(trial: LawTrial, twin: ReferenceTwin) -> None:
    """Check output and gradients in training, and, if statistics are stored, the output in eval."""
    expected = run_forward(trial, twin, grad=True)
    trial.check_close("y", expected.output, axis=1)
    of_input, of_weight, _ = expected.gradients(trial.run_backward(0))
    trial.check_close("x.grad", of_input, axis=1)
    if trial.case.affine:
        trial.check_close("layer.weight.grad", of_weight)
    if trial.case.track_running_stats:
        set_mode(trial, twin, training=False)
        trial.check_close("y", run_forward(trial, twin).output, axis=1)


@law(("float64", "float32"), share=0.5, tracking=False)
def tracking_off(trial: LawTrial, case: Case) -> None:
    """With track_running_stats=False there are no buffers, and eval uses batch statistics, too."""
    twin = build_in_mode(trial, training=True)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        trial.require(f"layer.{name} is None", f"{name} is {{layer.{name}}}, expected None")
    trial.require("not list(layer.buffers())", "there are buffers")
    for training in (True, False):
        set_mode(trial, twin, training=training)
        expected = run_forward(trial, twin, grad=True)
        trial.check_close("y", expected.output, axis=1)
        trial.check_close("x.grad", expected.gradients(trial.run_backward(0))[0], axis=1)


@law(("float32",), share=0.5)
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
