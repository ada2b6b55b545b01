"""Laws of how a BatchNorm is transformed: derivatives of derivatives, and batches of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue, ReferenceTwin
from pytest_bninvariants.batchnorm.laws.registry import law
from pytest_bninvariants.batchnorm.laws.steps import EVAL_CASES, build_in_mode
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial

_SMALL: dict[str, Any] = {"layouts": CONTIGUOUS, "max_values": 128, "needs": ("eps",)}


@law(("float64",), share=0.3, **_SMALL)
def double_backward(trial: LawTrial, case: Case) -> None:
    """The gradients can be differentiated again, in training and in eval; in eval once more.

    Held to half of float64's digits, on well-conditioned data: this is about formulas.
    """
    case = _well_conditioned(case)
    for training in (True, False):
        _differentiate_twice(trial.for_case(case), training=training)
    _differentiate_thrice(trial.for_case(case))


def _differentiate_twice(trial: LawTrial, *, training: bool) -> None:
    twin = build_in_mode(trial, training=training)
    x = trial.bind_batch(trial.case.batches[0], grad=True)
    g = trial.bind_gradient()
    v = g.flip(0).sin()
    trial.run("v = g.flip(0).sin()", "g.requires_grad_()", "y = layer(x)")
    trial.run("of = (x, layer.weight, layer.bias)")
    trial.run("first = torch.autograd.grad(y, of, g, create_graph=True)")
    trial.run("loss = (first[0] * v).sum() + sum((each * each).sum() for each in first)")
    trial.run("of = (x, g, layer.weight)")
    trial.run("second = torch.autograd.grad(loss, of, materialize_grads=True)")
    x64 = x.cpu().clone().requires_grad_()
    g64 = g.detach().cpu().clone().requires_grad_()
    y64 = twin.reference(x64)
    weight, bias = twin.reference.weight, twin.reference.bias
    assert weight is not None
    assert bias is not None
    first = torch.autograd.grad(y64, (x64, weight, bias), g64, create_graph=True)
    loss = (first[0] * v.cpu()).sum() + sum(each.square().sum() for each in first)
    seconds = torch.autograd.grad(loss, (x64, g64, weight), materialize_grads=True)
    for index, value in enumerate(seconds):
        trial.check_close(f"second[{index}]", _half_the_digits(value), axis=int(index < 2))


def _differentiate_thrice(trial: LawTrial) -> None:
    """Check that in eval d x, which is w r g, has no second derivative by x, and 1 by w."""
    twin = build_in_mode(trial, training=False)
    x = trial.bind_batch(trial.case.batches[0], grad=True)
    g = trial.bind_gradient()
    trial.run("y = layer(x)", "(of_x,) = torch.autograd.grad(y, x, g, create_graph=True)")
    trial.run("loss = (of_x * of_x).sum() + (x * x * x).sum()")
    trial.run("of_xx, of_w = torch.autograd.grad(loss, (x, layer.weight), create_graph=True)")
    trial.run("third = torch.autograd.grad(of_xx.sum() + (of_w * of_w).sum(), (x, layer.weight))")
    x64, weight = x.cpu().clone().requires_grad_(), twin.reference.weight
    assert weight is not None
    (of_x,) = torch.autograd.grad(twin.reference(x64), x64, g.cpu(), create_graph=True)
    loss = (of_x * of_x).sum() + (x64 * x64 * x64).sum()
    of_xx, of_w = torch.autograd.grad(loss, (x64, weight), create_graph=True)
    thirds = torch.autograd.grad(of_xx.sum() + (of_w * of_w).sum(), (x64, weight))
    for index, value in enumerate(thirds):
        trial.check_close(f"third[{index}]", _half_the_digits(value), axis=int(index == 0))


@law(("float64",), share=0.3, affine=False, **_SMALL)
def double_backward_affine_off(trial: LawTrial, case: Case) -> None:
    """With affine=False a gradient penalty on the input has its gradients, in both modes.

    Held to half of float64's digits, on well-conditioned data.
    """
    case = _well_conditioned(case)
    for training in (True, False):
        _differentiate_penalty(trial.for_case(case), training=training)


def _differentiate_penalty(trial: LawTrial, *, training: bool) -> None:
    twin = build_in_mode(trial, training=training)
    x = trial.bind_batch(trial.case.batches[0], grad=True)
    g = trial.bind_gradient()
    trial.run("g.requires_grad_()", "y = layer(x)")
    trial.run("(of_x,) = torch.autograd.grad(y, x, g, create_graph=True)")
    trial.run("loss = (of_x * of_x).sum()")
    trial.run("second = torch.autograd.grad(loss, (x, g), materialize_grads=True)")
    x64, g64 = x.cpu().clone().requires_grad_(), g.detach().cpu().clone().requires_grad_()
    (of_x,) = torch.autograd.grad(twin.reference(x64), x64, g64, create_graph=True)
    seconds = torch.autograd.grad(of_x.square().sum(), (x64, g64), materialize_grads=True)
    for index, value in enumerate(seconds):
        trial.check_close(f"second[{index}]", _half_the_digits(value), axis=1)


@law(("float64",), share=0.3, layouts=CONTIGUOUS, max_values=128, needs=("eps",))
def forward_derivative(trial: LawTrial, case: Case) -> None:
    """Forward-mode AD gives the derivative of the output, by input, weight and bias, in both modes.

    Held to half of float64's digits, on well-conditioned data: this is about formulas.
    """
    case = _well_conditioned(case)
    for training in (True, False):
        _derive_forward(trial.for_case(case), training=training)


def _derive_forward(trial: LawTrial, *, training: bool) -> None:
    twin = build_in_mode(trial, training=training)
    x = trial.bind_batch(trial.case.batches[0])
    t = trial.bind_gradient(name="t")
    trial.run("from torch.autograd import forward_ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns when it first loads its jvp decompositions
        _derive(trial, twin, x, t)
        _derive_backward(trial, twin, x, t)
        if training:
            _derive_gradients_forward(trial)


def _derive_backward(trial: LawTrial, twin: ReferenceTwin, x: Tensor, t: Tensor) -> None:
    """Check the gradient of a forward derivative by the weight, of which the derivative is a sum.

    By the input torch has it wrong in training.
    """
    trial.run(
        "with forward_ad.dual_level():\n"
        "    derivative = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, t))).tangent\n"
        "    (of_weight,) = torch.autograd.grad((derivative * x).sum(), layer.weight)"
    )
    weight, x64 = twin.reference.weight, x.cpu()
    assert weight is not None
    pulled = _tangents(lambda x: (twin.reference(x) * x64,), x64, t.cpu())[0]
    (value,) = torch.autograd.grad(pulled.sum(), weight)
    trial.check_close("of_weight", _half_the_digits(value))


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
    of_parameters = 2 * twin.reference(x.cpu()).detach()
    trial.check_close("derivative", _half_the_digits(of_parameters), axis=1)
    trial.run(
        "with forward_ad.dual_level():\n"
        "    twice = {k: forward_ad.make_dual(v, 2 * v) for k, v in layer.named_parameters()}\n"
        "    derivative = forward_ad.unpack_dual("
        "torch.func.functional_call(layer, twice, (forward_ad.make_dual(x, t),))).tangent",
    )
    trial.check_close("derivative", _half_the_digits(value + of_parameters), axis=1)


def _derive_gradients_forward(trial: LawTrial) -> None:
    """Check forward-mode AD over the gradients, in training."""
    twin = trial.make_twin()
    twin.reference.track_running_stats = False
    trial.build_layer()
    x, t = trial.bind_batch(trial.case.batches[0]), trial.bind_gradient(name="t")
    g = t.flip(0).cos()
    trial.run(
        "g = t.flip(0).cos()",
        "with forward_ad.dual_level():\n"
        "    dual = forward_ad.make_dual(x.clone().requires_grad_(), t)\n"
        "    first = torch.autograd.grad(layer(dual), (dual, layer.weight), g, create_graph=True)\n"
        "    derivative = [forward_ad.unpack_dual(each).tangent for each in first]",
    )

    def gradients(x64: Tensor) -> tuple[Tensor, ...]:
        weight = twin.reference.weight
        assert weight is not None
        return torch.autograd.grad(twin.reference(x64), (x64, weight), g.cpu(), create_graph=True)

    values = _tangents(gradients, x.cpu(), t.cpu())
    for index, value in enumerate(values):
        trial.check_close(f"derivative[{index}]", _half_the_digits(value), axis=int(index == 0))


def _tangents(
    function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, t: Tensor
) -> list[Tensor]:
    """Return the derivatives of a function along t, by reverse mode twice."""
    x = x.clone().requires_grad_()
    found = []
    for each in function(x):
        dummy = torch.zeros_like(each, requires_grad=True)
        (pulled,) = torch.autograd.grad(each, x, dummy, create_graph=True)
        (tangent,) = torch.autograd.grad((pulled * t).sum(), dummy, create_graph=True)
        found.append(tangent)
    return found


@law(("float64", "float32"), share=0.2, layouts=CONTIGUOUS, max_values=128)
def batched_gradients(trial: LawTrial, case: Case) -> None:
    """A batch of gradients at once, as for a jacobian, gives what each gives, in both modes."""
    for training in (True, False):
        one = trial.for_case(case)
        twin = build_in_mode(one, training=training)
        x = one.bind_batch(case.batches[0], grad=True)
        expected = twin.expect(x)
        g = one.bind_gradient()
        one.run(
            "gs = torch.stack((g, g.flip(0).cos(), torch.zeros_like(g)))",
            "of = (x, layer.weight, layer.bias)",
            "gradients = torch.autograd.grad(layer(x), of, gs, is_grads_batched=True)",
        )
        for index, each in enumerate((g, g.flip(0).cos(), torch.zeros_like(g))):
            for which, value in enumerate(expected.gradients(each)):
                one.check_close(f"gradients[{which}][{index}]", value, axis=int(which == 0))


@law(("float64", "float32"), frozen=True, share=0.2, max_values=128, **EVAL_CASES)
def vmap(trial: LawTrial, case: Case) -> None:
    """In eval torch.vmap over inputs, and torch.func's gradients, give what single calls give.

    A layer whose autograd.Function is not written for them, and so is refused by torch, may be.
    """
    twin = build_in_mode(trial, training=False)
    x = trial.bind_batch(case.batches[0])
    g = trial.bind_gradient()
    first, second = twin.expect(x), twin.expect(x.flip(0) + 1)
    trial.run("xs, gs = torch.stack((x, x.flip(0) + 1)), torch.stack((g, g.sin()))")
    if not _transform(trial, "ys = torch.vmap(layer)(xs)"):
        return
    trial.check_close("ys[0]", first.output, axis=1)
    trial.check_close("ys[1]", second.output, axis=1)
    trial.run("pull = lambda x, g: torch.func.vjp(layer, x)[1](g)[0]")
    if not _transform(trial, "of_x = torch.vmap(pull)(xs, gs)"):
        return
    trial.check_close("of_x[0]", first.gradients(g)[0], axis=1)
    trial.check_close("of_x[1]", second.gradients(g.sin())[0], axis=1)
    trial.run("_, pull = torch.func.vjp(layer, x)", "of_x = torch.vmap(pull)(gs)[0]")
    trial.check_close("of_x[0]", first.gradients(g)[0], axis=1)
    trial.check_close("of_x[1]", first.gradients(g.sin())[0], axis=1)


@law(("float64",), share=0.1, **_SMALL | {"needs": ("eps", "track_running_stats")})
def vmap_parameters(trial: LawTrial, case: Case) -> None:
    """torch.vmap over parameters, and gradients for each of some batches, are as single calls give.

    So it is with a batch of tangents; in training without stored statistics, too. A layer that
    torch refuses, as with `vmap`, may be.
    """
    case = _well_conditioned(case)
    for training in (False, True):
        one = trial.for_case(replace(case, track_running_stats=not training))
        twin = build_in_mode(one, training=training)
        x = one.bind_batch(case.batches[0])
        one.bind_gradient()
        one.run(
            "xs, gs = torch.stack((x, x.flip(0) + 1)), torch.stack((g, g.sin()))",
            "parameters = {k: v.detach() for k, v in layer.named_parameters()}",
            "call = lambda p, x: torch.func.functional_call(layer, p, (x,))",
        )
        if _vmap_weights(one, twin, x):
            _vmap_gradients(one, twin, x)
            _vmap_tangents(one, twin, x)


def _vmap_weights(trial: LawTrial, twin: ReferenceTwin, x: Tensor) -> bool:
    """Check a call with two weights and biases at once, and tell whether torch makes it."""
    trial.run("two = {k: torch.stack((v, 2 * v + 1)) for k, v in parameters.items()}")
    if not _transform(trial, "ys = torch.vmap(call, in_dims=(0, None))(two, x)"):
        return False
    trial.check_close("ys[0]", twin.expect(x).output, axis=1)
    kept = [each.detach().clone() for each in twin.reference.parameters()]
    for each in twin.reference.parameters():
        each.data.mul_(2).add_(1)
    trial.check_close("ys[1]", twin.expect(x).output, axis=1)
    for each, value in zip(twin.reference.parameters(), kept, strict=True):
        each.data.copy_(value)
    return True


def _vmap_gradients(trial: LawTrial, twin: ReferenceTwin, x: Tensor) -> None:
    """Check the gradients of parameters and input for each of two batches."""
    trial.run("loss = lambda p, x, g: (call(p, x) * g).sum()")
    gradient = "torch.vmap(torch.func.grad(loss, (0, 1)), in_dims=(None, 0, 0))"
    if not _transform(trial, f"of, of_x = {gradient}(parameters, xs, gs)"):
        return
    g = trial.evaluate("g")
    trial.run(
        "names = {value: name for name, value in layer.named_parameters()}",
        "of_weight, of_bias = (of[names[each]] for each in (layer.weight, layer.bias))",
    )
    for index, (batch, each) in enumerate(((x, g), (x.flip(0) + 1, g.sin()))):
        of_input, of_weight, of_bias = twin.expect(batch).gradients(each)
        trial.check_close(f"of_x[{index}]", of_input, axis=1)
        trial.check_close(f"of_weight[{index}]", of_weight)
        trial.check_close(f"of_bias[{index}]", of_bias)


def _vmap_tangents(trial: LawTrial, twin: ReferenceTwin, x: Tensor) -> None:
    """Check forward-mode AD along two tangents at once."""
    push = "torch.func.jvp(lambda x: call(parameters, x), (x,), (t,))[1]"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns when it first loads its jvp decompositions
        if not _transform(trial, f"pushed = torch.vmap(lambda t: {push})(gs)"):
            return
    g = trial.evaluate("g").cpu()
    for index, t in enumerate((g, g.sin())):
        (value,) = _tangents(lambda x: (twin.reference(x),), x.cpu(), t)
        trial.check_close(f"pushed[{index}]", _half_the_digits(value.detach()), axis=1)


def _transform(trial: LawTrial, line: str) -> bool:
    """Run a line, and tell whether torch applied it."""
    trial.run("refused = False")
    trial.run(
        f"try:\n    {line}\n"
        "except RuntimeError as error:\n"
        "    refused = 'setup_context' in str(error) or 'generate_vmap_rule' in str(error)\n"
        "    if not refused:\n        raise"
    )
    return not trial.evaluate("refused")


def _well_conditioned(case: Case) -> Case:
    batch = replace(case.batches[0], kappa=min(case.batches[0].kappa, 1.0), sigma=1.0)
    return replace(case, batches=(batch,), eps=max(case.eps, 1e-3))


def _half_the_digits(value: torch.Tensor) -> BoundedValue:
    return BoundedValue(value, torch.full_like(value, 2.0**-26 * (1 + float(value.abs().max()))))
