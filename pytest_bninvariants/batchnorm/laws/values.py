"""Laws of what a BatchNorm computes: outputs, running statistics, gradients."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.expectation import Approximation, Expected, Twin
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.trials import Trial

EVAL: dict[str, Any] = {"modes": (False,), "momentum": False}


def start(trial: Trial, *, training: bool) -> Twin:
    """Build the layer and its twin, in a mode."""
    trial.build()
    twin = trial.twin()
    switch(trial, twin, training=training)
    return twin


def switch(trial: Trial, twin: Twin, *, training: bool) -> None:
    """Put the layer and its twin in a mode."""
    trial.run("layer.train()" if training else "layer.eval()")
    twin.reference.train(training)


def forward(trial: Trial, twin: Twin, index: int = 0, *, grad: bool = False) -> Expected:
    """Run a forward of a batch, giving `y`, and return what must come of it."""
    x = trial.feed(trial.case.batches[index], grad=grad)
    trial.run("y = layer(x)")
    return twin.expect(x)


def hold_training(trial: Trial, twin: Twin, expected: Expected, layer: str = "layer") -> None:
    """Hold what a batch in training gives: `y`, and the running statistics."""
    trial.close("y", expected.output, axis=1)
    trial.close(f"{layer}.running_mean", twin.running_mean)
    trial.close(f"{layer}.running_var", twin.running_var)


KEEP = "kept = {name: value.detach().clone() for name, value in layer.state_dict().items()}"


def unchanged(trial: Trial, what: str) -> None:
    """Hold that the state is what `KEEP` kept."""
    trial.require(
        "layer.state_dict().keys() == kept.keys()", f"{what} changed the keys of state_dict()"
    )
    for name in list(trial["kept"]):
        trial.same(f"layer.state_dict()[{name!r}]", f"kept[{name!r}]", f"{what} changed {name}")


@law()
def training_output(trial: Trial, case: Case) -> None:
    """In training the output is (x - mean) / sqrt(var + eps) w + b, of the batch's biased var."""
    twin = start(trial, training=True)
    trial.close("y", forward(trial, twin).output, axis=1)


@law(("float64", "float32"), share=0.1, momentum=False, layouts=CONTIGUOUS, max_values=64)
def eps_values(trial: Trial, case: Case) -> None:
    """eps is added to the variance before the root, whatever its value, in training and in eval."""
    least = 1e-16 if case.dtype == "float64" else 1e-8
    for eps in (1.0, 0.1, 1e-3, 1e-5, 1e-8, 1e-12, 1e-16):
        if eps >= least:
            near = replace(case.batches[0], sigma=eps**0.5, kappa=0.0)
            trial.case = replace(case, eps=eps, batches=(near,), seed=3 * (case.seed or 0) + 1)
            twin = start(trial, training=True)
            trial.close("y", forward(trial, twin).output, axis=1)
            twin = start(trial, training=False)
            trial.close("y", forward(trial, twin).output, axis=1)


@law(frozen=True, **EVAL)
def eval_output(trial: Trial, case: Case) -> None:
    """In eval the output is a fixed affine map, of the stored statistics: (x - mean) r w + b."""
    twin = start(trial, training=False)
    trial.close("y", forward(trial, twin).output, axis=1)


@law(frozen=True, every=False, **EVAL)
def frozen_output(trial: Trial, case: Case) -> None:
    """In training a layer with frozen statistics gives what it gives in eval."""
    trial.build()
    twin = trial.twin()
    twin.reference.eval()
    trial.run("layer.train()")
    trial.close("y", forward(trial, twin).output, axis=1)


@law(modes=None, layouts=CONTIGUOUS)
def eval_output_after_training(trial: Trial, case: Case) -> None:
    """In eval the output follows the statistics that training has left, and not earlier ones."""
    twin = start(trial, training=False)
    for index, training in enumerate(case.modes):
        switch(trial, twin, training=training)
        forward(trial, twin, index)
        switch(trial, twin, training=False)
        trial.close("y", forward(trial, twin, index).output, axis=1)


def _track(trial: Trial, case: Case, *names: str) -> None:
    twin = start(trial, training=True)
    for index, training in enumerate(case.modes):
        switch(trial, twin, training=training)
        forward(trial, twin, index)
        for name in names:
            trial.close(f"layer.{name}", getattr(twin, name))


@law(modes=None)
def running_mean(trial: Trial, case: Case) -> None:
    """Each batch in training makes running_mean (1 - m) old + m mean; in eval it stays."""
    _track(trial, case, "running_mean")


@law(modes=None)
def running_var(trial: Trial, case: Case) -> None:
    """Each batch in training makes running_var (1 - m) old + m var n/(n - 1); in eval it stays."""
    _track(trial, case, "running_var")


@law(modes=(True, True, True), layouts=CONTIGUOUS)
def momentum(trial: Trial, case: Case) -> None:
    """Momentum is the weight of the new batch, whatever its value: 0 and 1 too, and beyond them.

    A layer may refuse those beyond.
    """
    beyond = {1: 1.5, 7: -0.5}.get(case.count)
    if beyond is not None and not _refuses(trial, momentum=beyond):
        trial.case = replace(case, momentum=beyond)
    _track(trial, trial.case, "running_mean", "running_var")


def _refuses(trial: Trial, **arguments: Any) -> bool:
    """Return whether the layer's constructor says that a value is wrong."""
    try:
        trial.subject.factory(trial.case.channels, **arguments | trial.subject.keywords)
    except ValueError:
        return True
    return False


@law(modes=(True, True, True), momentum=False, layouts=CONTIGUOUS)
def cumulative_average(trial: Trial, case: Case) -> None:
    """With momentum=None the running statistics are averages: the k-th batch weighs 1/k."""
    counts = {0: 0, 1: 1, 7: 5, 2**24: 2049, 2**31: 70_000}
    trial.case = replace(case, momentum=None, count=counts.get(case.count, case.count))
    _track(trial, trial.case, "running_mean", "running_var")


@law(("float32", "float16"), modes=None, layouts=CONTIGUOUS, max_values=256)
def counter(trial: Trial, case: Case) -> None:
    """num_batches_tracked is an int64 scalar that counts batches in training, and only those."""
    twin = start(trial, training=True)
    count = case.count
    for index, training in enumerate(case.modes):
        switch(trial, twin, training=training)
        trial.feed(case.batches[index])
        trial.run("layer(x)")
        count += training
        trial.require(
            "layer.num_batches_tracked.dtype == torch.int64"
            " and layer.num_batches_tracked.dim() == 0",
            "num_batches_tracked is {layer.num_batches_tracked}, no int64 scalar",
        )
        trial.require(
            f"int(layer.num_batches_tracked) == {count}",
            f"num_batches_tracked is {{layer.num_batches_tracked}}, expected {count}",
        )


def _gradients(
    trial: Trial, case: Case, *, training: bool, grad: bool = False, frozen: str = ""
) -> tuple[Approximation, Approximation, Approximation]:
    twin = start(trial, training=training)
    if frozen and case.seed is not None and case.seed % 2:
        trial.run(f"{frozen}.requires_grad_(False)")
    expected = forward(trial, twin, grad=grad)
    return expected.gradients(trial.backward(0))


@law()
def input_gradient(trial: Trial, case: Case) -> None:
    """In training d x is w r (g - mean(g) - xh mean(g xh)): statistics depend on x."""
    trial.close(
        "x.grad", _gradients(trial, case, training=True, grad=True, frozen="layer")[0], axis=1
    )


@law()
def weight_gradient(trial: Trial, case: Case) -> None:
    """In training d weight is the sum over a channel of g xh."""
    gradients = _gradients(trial, case, training=True, frozen="layer.bias")
    trial.close("layer.weight.grad", gradients[1])


@law()
def bias_gradient(trial: Trial, case: Case) -> None:
    """In training d bias is the sum over a channel of g."""
    gradients = _gradients(trial, case, training=True, frozen="layer.weight")
    trial.close("layer.bias.grad", gradients[2])


@law(frozen=True, **EVAL)
def eval_input_gradient(trial: Trial, case: Case) -> None:
    """In eval d x is w r g: statistics are constants."""
    trial.close(
        "x.grad", _gradients(trial, case, training=False, grad=True, frozen="layer")[0], axis=1
    )


@law(**EVAL)
def eval_weight_gradient(trial: Trial, case: Case) -> None:
    """In eval d weight is the sum over a channel of g xh, of stored statistics."""
    gradients = _gradients(trial, case, training=False, frozen="layer.bias")
    trial.close("layer.weight.grad", gradients[1])


@law(**EVAL)
def eval_bias_gradient(trial: Trial, case: Case) -> None:
    """In eval d bias is the sum over a channel of g."""
    gradients = _gradients(trial, case, training=False, frozen="layer.weight")
    trial.close("layer.bias.grad", gradients[2])


@law(("float32",), share=0.3, layouts=CONTIGUOUS, max_values=256)
def gradients_accumulate(trial: Trial, case: Case) -> None:
    """A second backward adds to the gradients that are there, of a new graph or a kept one."""
    trial.value("g", case.gradient(0))
    for again in ("layer(x).backward(g)", "y.backward(g)"):
        start(trial, training=True)
        trial.feed(case.batches[0], grad=True)
        trial.run("y = layer(x)", "y.backward(g, retain_graph=True)")
        trial.run("once = [each.grad.clone() for each in (x, layer.weight, layer.bias)]", again)
        for index, name in enumerate(("x.grad", "layer.weight.grad", "layer.bias.grad")):
            trial.same(
                name, f"2 * once[{index}]", f"{name} after a second backward is not twice the first"
            )


@law(("float32",), share=0.3, modes=(True, True), layouts=CONTIGUOUS, max_values=256)
def graphs_are_independent(trial: Trial, case: Case) -> None:
    """Each forward has a graph of its own, which autograd differentiates without touching .grad.

    It is the graph of the mode that the layer was in then.
    """
    twin = start(trial, training=True)
    expected = forward(trial, twin, grad=True)
    trial.run("first, y_of_first = x, y")
    forward(trial, twin, 1)
    g = case.gradient(0)
    trial.value("g", g)
    trial.run("layer.eval()")  # as a validation between forward and backward does
    wanted = "(first, layer.weight, layer.bias)"
    trial.run(f"gradients = torch.autograd.grad(y_of_first, {wanted}, g)")
    for index, gradient in enumerate(expected.gradients(g)):
        trial.close(f"gradients[{index}]", gradient, axis=int(index == 0))
    trial.require(
        f"all(each.grad is None for each in {wanted})", "torch.autograd.grad left a .grad behind"
    )


@law(("float32",), share=0.3, layouts=CONTIGUOUS, max_values=256)
def output_written_in_place(trial: Trial, case: Case) -> None:
    """The output may be written in place before backward, as ReLU(inplace=True) behind it does.

    If the input is written, backward raises RuntimeError or gives the gradients all the same.
    """
    for training in (True, False):
        twin = start(trial, training=training)
        expected = forward(trial, twin, grad=True)
        g = case.gradient(0)
        trial.value("g", g)
        trial.run("y.mul_(2)", "y.backward(g)")
        for index, gradient in enumerate(expected.gradients(2 * g)):
            name = ("x", "layer.weight", "layer.bias")[index]
            trial.close(f"{name}.grad", gradient, axis=int(index == 0))
        _input_written(trial, training=training)


def _input_written(trial: Trial, *, training: bool) -> None:
    twin = start(trial, training=training)
    x = trial.feed(trial.case.batches[0], grad=True)
    trial.run("z = x * 1", "y = layer(z)", "z.mul_(2).add_(1)")
    g = trial.case.gradient(0)
    trial.value("g", g)
    trial.run("refused = False")
    trial.run("try:\n    y.backward(g)\nexcept RuntimeError:\n    refused = True")
    if not trial["refused"]:
        of_input, of_weight, _ = twin.expect(x).gradients(g)
        trial.close("x.grad", of_input, axis=1)
        trial.close("layer.weight.grad", of_weight)


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


@law(("float32",), share=0.02, layouts=CONTIGUOUS, max_values=64)
def many_batches(trial: Trial, case: Case) -> None:
    """The hundredth batch counts as the first did."""
    twin = start(trial, training=True)
    batch = case.batches[0]
    for index in range(130):
        trial.case = replace(case, batches=(replace(batch, seed=batch.seed + index),))
        forward(trial, twin)
    trial.close("layer.running_mean", twin.running_mean)
    trial.close("layer.running_var", twin.running_var)


@law(("float64",), share=0.5, modes=(True,), layouts=CONTIGUOUS, max_values=128)
def double_backward(trial: Trial, case: Case) -> None:
    """The gradient of the input can be differentiated again, in training and in eval.

    Held to half of float64's digits, on well-conditioned data: this is about formulas.
    """
    trial.case = case = _well_conditioned(case)
    training = case.count != 1
    twin = start(trial, training=training)
    x = trial.feed(case.batches[0], grad=True)
    g, v = case.gradient(0), case.gradient(0).flip(0).sin()
    trial.value("g", g)
    trial.value("v", v)
    trial.run("g.requires_grad_()", "y = layer(x)")
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
        trial.close(f"second[{index}]", _half_the_digits(value), axis=int(index < 2))


@law(("float64",), share=0.3, modes=(True,), layouts=CONTIGUOUS, max_values=128)
def forward_derivative(trial: Trial, case: Case) -> None:
    """Forward-mode AD gives the derivative of the output, by input, weight and bias, in both modes.

    Held to half of float64's digits, on well-conditioned data: this is about formulas.
    """
    trial.case = case = _well_conditioned(case)
    twin = start(trial, training=case.count != 1)
    x = trial.feed(case.batches[0])
    t = case.gradient(0)
    trial.value("t", t)
    trial.run("from torch.autograd import forward_ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, when it first loads what this takes
        _derive(trial, twin, x, t)


def _derive(trial: Trial, twin: Twin, x: torch.Tensor, t: torch.Tensor) -> None:
    trial.run(
        "with forward_ad.dual_level():\n"
        "    derivative = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, t))).tangent",
    )
    twin.reference.track_running_stats = False  # torch.func.jvp takes no module that updates itself
    value = torch.func.jvp(twin.reference, (x.cpu(),), (t.cpu(),))[1].detach()
    trial.close("derivative", _half_the_digits(value), axis=1)
    trial.run(
        "with forward_ad.dual_level():\n"
        "    twice = {k: forward_ad.make_dual(v, 2 * v) for k, v in layer.named_parameters()}\n"
        "    derivative = forward_ad.unpack_dual("
        "torch.func.functional_call(layer, twice, (x,))).tangent",
    )
    trial.close("derivative", _half_the_digits(2 * twin.reference(x.cpu()).detach()), axis=1)


def _well_conditioned(case: Case) -> Case:
    batch = replace(case.batches[0], kappa=min(case.batches[0].kappa, 1.0), sigma=1.0)
    return replace(case, batches=(batch,), eps=max(case.eps, 1e-3))


def _half_the_digits(value: torch.Tensor) -> Approximation:
    return Approximation(value, torch.full_like(value, 2.0**-26 * (1 + float(value.abs().max()))))


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


@law(("float32", "bfloat16"), frozen=True, share=0.5, **EVAL)
def eval_keeps_state(trial: Trial, case: Case) -> None:
    """In eval nothing of the state changes, in forward or backward."""
    trial.build()
    trial.run(KEEP, "torch.nn.Sequential(layer).eval()")
    trial.feed(case.batches[0], grad=True)
    trial.run("y = layer(x)", "y.sum().backward()")
    unchanged(trial, "eval")


@law(("float32", "float64"), frozen=True, layouts=CONTIGUOUS, min_values=4, **EVAL)
def eval_batch_mates(trial: Trial, case: Case) -> None:
    """In eval a sample's output depends not on its batch mates, their order or their number."""
    twin = start(trial, training=False)
    expected = forward(trial, twin).output
    trial.run("parts = torch.cat([layer(x[:1]), layer(x[1:])]) if len(x) > 1 else layer(x)")
    trial.close("parts", expected, axis=1)
    trial.run("turned = layer(x.flip(0)).flip(0)")
    trial.close("turned", expected, axis=1)
    trial.run("crowd = layer(torch.cat([x, 100 * x + 7]))[: len(x)]")
    trial.close("crowd", expected, axis=1)


@law(("float64", "float32"), share=0.5, layouts=CONTIGUOUS)
def scaling(trial: Trial, case: Case) -> None:
    """Scaling the input by 4, and eps by 16, leaves the training output as it was."""
    trial.build(eps=case.eps * 16)
    trial.run("layer.train()")
    x = trial.feed(case.batches[0])
    value = trial.twin().expect(x).output.value
    trial.run("y = layer(4 * x)")
    bound = trial.twin(eps=case.eps * 16).expect(4 * x).output.bound
    trial.close("y", Approximation(value, bound), axis=1)


@law(("float64", "float32"), share=0.5, layouts=CONTIGUOUS)
def shifting(trial: Trial, case: Case) -> None:
    """Shifting the input by a constant leaves the training output as it was."""
    batch = replace(case.batches[0], kappa=0.0, sigma=1.0)
    trial.case = replace(case, batches=(batch,))
    trial.build()
    trial.run("layer.train()")
    trial.feed(batch)
    trial.run("x = (16 * x).round() / 16", "y = layer(x + 1024)")  # exact in float32
    x = trial["x"]
    value, bound = trial.twin().expect(x).output.value, trial.twin().expect(x + 1024).output.bound
    trial.close("y", Approximation(value, bound), axis=1)
