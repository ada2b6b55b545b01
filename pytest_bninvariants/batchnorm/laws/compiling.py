"""The law of a compiled BatchNorm."""

from __future__ import annotations

from dataclasses import replace

import torch

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.laws.steps import (
    build_in_mode,
    check_training_results,
    run_forward,
    set_mode,
)
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial
from pytest_bninvariants.errors import LawBroken

_COMPILE = "layer = torch.compile(eager, backend='aot_eager_decomp_partition')"


@law(
    ("float32", "bfloat16"),
    share=0.02,
    state_dtype="float32",
    layouts=CONTIGUOUS,
    max_values=256,
    needs=("momentum", "affine", "num_batches_tracked"),
)
def compile(trial: LawTrial, case: Case) -> None:
    """torch.compile gives what the reference says, with PyTorch's decompositions, in both modes."""
    variants = ((0.1, True), (None, False))
    for momentum, affine in variants if case.dtype == "float32" else variants[:1]:
        varied = replace(case, momentum=momentum, affine=affine, plain_gradient=False)
        try:
            _check_results(trial.for_case(varied), varied, _COMPILE)
        except LawBroken as broken:
            raise broken.with_note(_eager_result(trial, varied)) from broken.__cause__


def _eager_result(trial: LawTrial, case: Case) -> str:
    """Return whether the layer is right where it is not compiled."""
    try:
        _check_results(trial.for_case(case), case, "layer = eager")
    except LawBroken:
        return "eager is wrong, too"
    return "eager is right"


def _check_results(trial: LawTrial, case: Case, how: str) -> None:
    torch.compiler.reset()
    trial.run("import torch._dynamo")
    twin = build_in_mode(trial, training=True)
    trial.run("eager = layer", how)
    expected = run_forward(trial, twin, grad=True)
    check_training_results(trial, twin, expected, "eager")
    trial.require(
        f"int(eager.num_batches_tracked) == {case.count + 1}",
        f"num_batches_tracked is {{eager.num_batches_tracked}}, expected {case.count + 1}",
    )
    of_input, of_weight, _ = expected.gradients(trial.run_backward(0))
    if case.dtype == "float32":  # in half the decomposition itself rounds its gradients on the way
        trial.check_close("x.grad", of_input, axis=1)
    if case.dtype == "float32" and case.affine:
        trial.check_close("eager.weight.grad", of_weight)
    set_mode(trial, twin, training=False)
    trial.check_close("y", run_forward(trial, twin).output, axis=1)
