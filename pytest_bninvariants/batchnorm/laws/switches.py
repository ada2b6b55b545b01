"""Laws of a BatchNorm without parameters or statistics, and of settings that change."""

from __future__ import annotations

from dataclasses import replace

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.expectation import Twin
from pytest_bninvariants.batchnorm.laws.common import (
    KEEP,
    forward,
    hold_training,
    start,
    switch,
    unchanged,
)
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.laws.trial import Trial


@law(("float32",), share=0.3, modes=(True, True), layouts=CONTIGUOUS, max_values=256)
def settings_are_read(trial: Trial, case: Case) -> None:
    """momentum and eps count from when they are set, as recipes that change them rely on."""
    momentum, first = case.momentum, None if case.count % 2 else 0.25
    trial.case = replace(case, count=case.count % 8)
    trial.build(eps=0.5, momentum=first)
    twin = trial.twin(eps=0.5, momentum=first)
    switch(trial, twin, training=True)
    hold_training(trial, twin, forward(trial, twin))
    trial.run(f"layer.eps, layer.momentum = {case.eps!r}, {momentum!r}")
    twin.reference.eps, twin.reference.momentum = case.eps, momentum
    hold_training(trial, twin, forward(trial, twin, 1))
    switch(trial, twin, training=False)
    trial.close("y", forward(trial, twin, 1).output, axis=1)


@law(("float64", "float32"), share=0.5, affine=False, tracking=None)
def affine_off(trial: Trial, case: Case) -> None:
    """With affine=False there are no parameters, and the output is as with weight 1 and bias 0.

    With bias=False, where the constructor takes that, there is a weight and no bias.
    """
    twin = start(trial, training=True)
    trial.require(
        "layer.weight is None and layer.bias is None and not list(layer.parameters())",
        "there are parameters: weight is {layer.weight}",
    )
    _hold_outputs(trial, twin)
    if trial.subject.takes("bias"):
        without = trial.again(replace(case, affine=True, bias=False))
        twin = start(without, training=True)
        without.require(
            "layer.bias is None and list(layer.parameters()) == [layer.weight]",
            "bias=False gives the bias {layer.bias} and the weight {layer.weight}",
        )
        _hold_outputs(without, twin)


def _hold_outputs(trial: Trial, twin: Twin) -> None:
    """Hold output and gradients in training, and, if statistics are stored, the output in eval."""
    expected = forward(trial, twin, grad=True)
    trial.close("y", expected.output, axis=1)
    of_input, of_weight, _ = expected.gradients(trial.backward(0))
    trial.close("x.grad", of_input, axis=1)
    if trial.case.affine:
        trial.close("layer.weight.grad", of_weight)
    if trial.case.track_running_stats:
        switch(trial, twin, training=False)
        trial.close("y", forward(trial, twin).output, axis=1)


@law(("float64", "float32"), share=0.5, tracking=False)
def tracking_off(trial: Trial, case: Case) -> None:
    """With track_running_stats=False there are no buffers, and eval uses batch statistics, too."""
    twin = start(trial, training=True)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        trial.require(f"layer.{name} is None", f"{name} is {{layer.{name}}}, expected None")
    trial.require("not list(layer.buffers())", "there are buffers")
    for training in (True, False):
        switch(trial, twin, training=training)
        expected = forward(trial, twin, grad=True)
        trial.close("y", expected.output, axis=1)
        trial.close("x.grad", expected.gradients(trial.backward(0))[0], axis=1)


@law(("float32",), share=0.5)
def tracking_switched_off(trial: Trial, case: Case) -> None:
    """With track_running_stats set False later, training updates nothing; eval uses the stored.

    Where these are then set None, as in adaptation at test time, eval uses the batch's.
    """
    twin = start(trial, training=True)
    trial.run("layer.track_running_stats = False", KEEP)
    twin.reference.track_running_stats = False
    trial.close("y", forward(trial, twin).output, axis=1)
    unchanged(trial, "training without tracking")
    switch(trial, twin, training=False)
    trial.close("y", forward(trial, twin).output, axis=1)
    trial.run("layer.running_mean = layer.running_var = None")
    trial.close("y", forward(trial, trial.twin(track_running_stats=False)).output, axis=1)
