"""Laws of what a BatchNorm computes: outputs and running statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.laws.steps import (
    EVAL_CASES,
    KEEP_VALUES,
    build_in_mode,
    check_state_unchanged,
    check_training_results,
    run_forward,
    set_mode,
)
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial


@law()
def training_output(trial: LawTrial, case: Case) -> None:
    """In training the output is (x - mean) / sqrt(var + eps) w + b, of the batch's biased var."""
    twin = build_in_mode(trial, training=True)
    trial.check_close("y", run_forward(trial, twin).output, axis=1)


@law(
    ("float64", "float32"),
    share=0.1,
    momentum=False,
    layouts=CONTIGUOUS,
    max_values=64,
    needs=("eps",),
)
def eps_values(trial: LawTrial, case: Case) -> None:
    """eps is added to the variance before the root, whatever its value, in training and in eval.

    A layer may refuse 0 in training, as torch.nn does, but not take it for another value.
    """
    least = 1e-16 if case.dtype == "float64" else 1e-8
    for eps in (1.0, 0.1, 1e-3, 1e-5, 1e-8, 1e-12, 1e-16):
        if eps >= least:
            near = replace(case.batches[0], sigma=eps**0.5, kappa=0.0)
            varied = replace(case, eps=eps, batches=(near,), seed=3 * (case.seed or 0) + 1)
            for training in (True, False):
                one = trial.for_case(varied)
                twin = build_in_mode(one, training=training)
                one.check_close("y", run_forward(one, twin).output, axis=1)
    _check_without_eps(trial, case)


def _check_without_eps(trial: LawTrial, case: Case) -> None:
    """Check eps=0, with a variance that is far from 0 beside any eps but that one."""
    near = replace(case.batches[0], sigma=1e-3, kappa=0.0)
    trial.case = replace(case, eps=0.0, batches=(near,), seed=None)
    twin = build_in_mode(trial, training=False)
    trial.run("layer.running_var.fill_(1e-6)")
    assert twin.reference.running_var is not None
    twin.reference.running_var.fill_(trial.evaluate("layer.running_var")[0].item())
    trial.check_close("y", run_forward(trial, twin).output, axis=1)
    set_mode(trial, twin, training=True)
    x = trial.bind_batch(near)
    trial.run("refused = False", "try:\n    y = layer(x)\nexcept ValueError:\n    refused = True")
    if not trial.evaluate("refused"):
        trial.check_close("y", twin.expect(x).output, axis=1)


@law(share=0.1, momentum=False, layouts=CONTIGUOUS, max_values=256)
def constant_channels(trial: LawTrial, case: Case) -> None:
    """A channel without variance gives its bias, finite gradients, and running_var shrinks."""
    case = replace(case, batches=(replace(case.batches[0], kappa=0.0, sigma=1.0),))
    for constant in ("0", "2", "-0.5"):
        one = trial.for_case(case)
        twin = build_in_mode(one, training=True)
        one.bind_batch(case.batches[0])
        one.run(f"x = x.clone()\nx[:, 0] = {constant}", "x.requires_grad_()", "y = layer(x)")
        expected = twin.expect(one.evaluate("x.detach()"))
        check_training_results(one, twin, expected)
        gradients = expected.gradients(one.run_backward(0))
        one.check_close("x.grad", gradients[0], axis=1)
        one.check_close("layer.weight.grad", gradients[1])


@law(frozen=True, **EVAL_CASES)
def eval_output(trial: LawTrial, case: Case) -> None:
    """In eval the output is a fixed affine map, of the stored statistics: (x - mean) r w + b."""
    twin = build_in_mode(trial, training=False)
    trial.check_close("y", run_forward(trial, twin).output, axis=1)


@law(frozen=True, full=False, **EVAL_CASES)
def frozen_output(trial: LawTrial, case: Case) -> None:
    """In training a layer with frozen statistics gives what it gives in eval."""
    trial.build_layer()
    twin = trial.make_twin()
    twin.reference.eval()
    trial.run("layer.train()")
    trial.check_close("y", run_forward(trial, twin).output, axis=1)


@law(modes=None, layouts=CONTIGUOUS)
def eval_output_after_training(trial: LawTrial, case: Case) -> None:
    """In eval the output follows the statistics that training has left, and not earlier ones."""
    twin = build_in_mode(trial, training=False)
    for index, training in enumerate(case.modes):
        set_mode(trial, twin, training=training)
        run_forward(trial, twin, index)
        set_mode(trial, twin, training=False)
        trial.check_close("y", run_forward(trial, twin, index).output, axis=1)


def _track(trial: LawTrial, case: Case, *names: str) -> None:
    twin = build_in_mode(trial, training=True)
    for index, training in enumerate(case.modes):
        set_mode(trial, twin, training=training)
        run_forward(trial, twin, index)
        for name in names:
            trial.check_close(f"layer.{name}", getattr(twin, name))


@law(modes=None)
def running_mean(trial: LawTrial, case: Case) -> None:
    """Each batch in training makes running_mean (1 - m) old + m mean; in eval it stays."""
    _track(trial, case, "running_mean")


@law(modes=None)
def running_var(trial: LawTrial, case: Case) -> None:
    """Each batch in training makes running_var (1 - m) old + m var n/(n - 1); in eval it stays."""
    _track(trial, case, "running_var")


@law(modes=(True, True, True), layouts=CONTIGUOUS, needs=("momentum",))
def momentum(trial: LawTrial, case: Case) -> None:
    """Momentum is the weight of the new batch, whatever its value: 0 and 1 too, and beyond them.

    A layer may refuse those beyond.
    """
    beyond = {1: 1.5, 7: -0.5}.get(case.count)
    if beyond is not None and not _refuses(trial, momentum=beyond):
        trial.case = replace(case, momentum=beyond)
    _track(trial, trial.case, "running_mean", "running_var")


def _refuses(trial: LawTrial, **arguments: Any) -> bool:
    """Tell whether the layer's constructor refuses these arguments."""
    try:
        trial.subject.factory(trial.case.channels, **arguments | trial.subject.keywords)
    except ValueError:
        return True
    return False


@law(
    modes=(True, True, True),
    momentum=False,
    layouts=CONTIGUOUS,
    needs=("momentum", "num_batches_tracked"),
)
def cumulative_average(trial: LawTrial, case: Case) -> None:
    """With momentum=None the running statistics are averages: the k-th batch weighs 1/k."""
    # from 2**24 on a batch weighs too little to show: take the first count that float16 does not
    # hold, and one past its range
    counts = {0: 0, 1: 1, 7: 5, 2**24: 2049, 2**31: 70_000}
    trial.case = replace(case, momentum=None, count=counts.get(case.count, case.count))
    _track(trial, trial.case, "running_mean", "running_var")


@law(
    ("float32", "float16"),
    modes=None,
    layouts=CONTIGUOUS,
    max_values=256,
    needs=("num_batches_tracked",),
)
def counter(trial: LawTrial, case: Case) -> None:
    """num_batches_tracked is an int64 scalar that counts batches in training, and only those."""
    twin = build_in_mode(trial, training=True)
    count = case.count
    for index, training in enumerate(case.modes):
        set_mode(trial, twin, training=training)
        trial.bind_batch(case.batches[index])
        trial.run("layer(x)")
        count += training
        trial.require(
            "layer.num_batches_tracked.dtype == torch.int64"
            " and layer.num_batches_tracked.dim() == 0",
            "num_batches_tracked is {layer.num_batches_tracked}, not an int64 scalar",
        )
        trial.require(
            f"int(layer.num_batches_tracked) == {count}",
            f"num_batches_tracked is {{layer.num_batches_tracked}}, expected {count}",
        )


@law(("float32",), share=0.02, layouts=CONTIGUOUS, max_values=64)
def many_batches(trial: LawTrial, case: Case) -> None:
    """The hundredth batch counts as the first did."""
    twin = build_in_mode(trial, training=True)
    trial.bind_batch(case.batches[0])
    # a hundred, and some that follow, each with statistics of its own
    trial.run("batches = [x.roll(i, 0) * (1 + i % 8 / 8) + i % 4 for i in range(130)]")
    trial.run("for batch in batches:\n    layer(batch)")
    for batch in trial.evaluate("batches"):
        twin.expect(batch)
    trial.check_close("layer.running_mean", twin.running_mean)
    trial.check_close("layer.running_var", twin.running_var)


@law(("float32", "bfloat16"), frozen=True, share=0.5, **EVAL_CASES)
def eval_keeps_state(trial: LawTrial, case: Case) -> None:
    """In eval no part of the state changes, in forward or backward."""
    trial.build_layer()
    trial.run(KEEP_VALUES, "torch.nn.Sequential(layer).eval()")
    trial.bind_batch(case.batches[0], grad=True)
    trial.run("y = layer(x)", "y.sum().backward()")
    check_state_unchanged(trial, "eval")


@law(("float32", "float64"), frozen=True, layouts=CONTIGUOUS, min_values=4, **EVAL_CASES)
def eval_batch_mates(trial: LawTrial, case: Case) -> None:
    """In eval a sample's output does not depend on its batch mates, their order or number."""
    twin = build_in_mode(trial, training=False)
    expected = run_forward(trial, twin).output
    trial.run("parts = torch.cat([layer(x[:1]), layer(x[1:])]) if len(x) > 1 else layer(x)")
    trial.check_close("parts", expected, axis=1)
    trial.run("turned = layer(x.flip(0)).flip(0)")
    trial.check_close("turned", expected, axis=1)
    trial.run("crowd = layer(torch.cat([x, 100 * x + 7]))[: len(x)]")
    trial.check_close("crowd", expected, axis=1)


@law(("float64", "float32"), share=0.5, layouts=CONTIGUOUS, needs=("eps",))
def scaling(trial: LawTrial, case: Case) -> None:
    """Scaling the input by 4, and eps by 16, leaves the training output as it was."""
    trial.build_layer(eps=case.eps * 16)
    trial.run("layer.train()")
    x = trial.bind_batch(case.batches[0])
    value = trial.make_twin().expect(x).output.value
    trial.run("y = layer(4 * x)")
    bound = trial.make_twin(eps=case.eps * 16).expect(4 * x).output.bound
    trial.check_close("y", BoundedValue(value, bound), axis=1)


@law(("float64", "float32"), share=0.5, layouts=CONTIGUOUS)
def shifting(trial: LawTrial, case: Case) -> None:
    """Shifting the input by a constant leaves the training output as it was."""
    batch = replace(case.batches[0], kappa=0.0, sigma=1.0)
    trial.case = replace(case, batches=(batch,))
    trial.build_layer()
    trial.run("layer.train()")
    trial.bind_batch(batch)
    # multiples of 1/16 near 1024 are exact in float32, so the shift adds no rounding
    trial.run("x = (16 * x).round() / 16", "y = layer(x + 1024)")
    x = trial.evaluate("x")
    value, bound = (
        trial.make_twin().expect(x).output.value,
        trial.make_twin().expect(x + 1024).output.bound,
    )
    trial.check_close("y", BoundedValue(value, bound), axis=1)
