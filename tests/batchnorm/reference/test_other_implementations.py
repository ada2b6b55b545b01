"""The reference held against ONNX, autograd and torch's layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.func import functional_call

from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm
from tests.batchnorm.reference.checks import (
    MODES,
    SHAPES,
    assert_close,
    assert_close_state,
    numbers,
    state,
    used,
)

EPS = 2.0**-10  # float32, which is how ONNX stores attributes, holds it and the momenta below


def onnx_batch_norm(bn: ReferenceBatchNorm, x: Tensor, keep: float) -> list[Tensor]:
    """Run ONNX's BatchNormalization on a layer's state; it has y, mean and var where it trains.

    Args:
        bn: whose state and mode it takes.
        x: the batch.
        keep: ONNX's momentum, the weight of the old running statistic.
    """
    inputs = {
        "x": x,
        "scale": bn.weight.detach(),
        "bias": bn.bias.detach(),
        "mean": bn.running_mean,
        "var": bn.running_var,
    }
    outputs = ["y", "new_mean", "new_var"] if bn.training else ["y"]
    node = helper.make_node(
        "BatchNormalization",
        list(inputs),
        outputs,
        epsilon=bn.eps,
        momentum=keep,
        training_mode=int(bn.training),
    )
    double = TensorProto.DOUBLE
    described = [helper.make_tensor_value_info(name, double, None) for name in [*inputs, *outputs]]
    graph = helper.make_graph([node], "bn", described[: len(inputs)], described[len(inputs) :])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    feeds = {name: value.numpy().copy() for name, value in inputs.items()}
    return [torch.from_numpy(np.asarray(y)) for y in ReferenceEvaluator(model).run(None, feeds)]


@pytest.mark.parametrize("shape", SHAPES)
def test_eval_agrees_with_onnx(shape: tuple[int, ...]) -> None:
    bn = used(ReferenceBatchNorm(3, eps=EPS)).eval()
    x = numbers(*shape)
    (y,) = onnx_batch_norm(bn, x, keep=0.75)
    assert_close(bn(x).detach(), y)


@pytest.mark.parametrize("momentum", [0.25, 0.75, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_agrees_with_onnx(shape: tuple[int, ...], momentum: float) -> None:
    bn = used(ReferenceBatchNorm(3, eps=EPS, momentum=momentum))
    n = math.prod(shape) // shape[1]
    for step in range(3):
        x, old = numbers(*shape, seed=step), state(bn)
        y, mean, var = onnx_batch_norm(bn, x, keep=1 - momentum)
        assert_close(bn(x).detach(), y)
        assert_close(bn.running_mean, mean)
        biased = (var - (1 - momentum) * old["running_var"]) / momentum
        unbiased = biased * n / (n - 1)
        assert_close(bn.running_var, (1 - momentum) * old["running_var"] + momentum * unbiased)


@pytest.mark.parametrize(("training", "tracked"), MODES)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)])
def test_its_forward_can_be_differentiated_twice(
    shape: tuple[int, ...], training: bool, tracked: bool
) -> None:
    bn = used(ReferenceBatchNorm(3, eps=0.1, track_running_stats=tracked)).train(training)

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(bn, {"weight": weight, "bias": bias}, (x,))

    inputs = [value.requires_grad_() for value in (numbers(*shape), numbers(3), numbers(3, seed=1))]
    assert torch.autograd.gradcheck(forward, inputs)
    assert torch.autograd.gradgradcheck(forward, inputs)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("training", "tracked"), MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_its_forward(
    shape: tuple[int, ...], training: bool, tracked: bool, affine: bool
) -> None:
    bn = used(ReferenceBatchNorm(3, affine=affine, track_running_stats=tracked)).train(training)
    x, grad = numbers(*shape).requires_grad_(), numbers(*shape, seed=1)
    twin = used(ReferenceBatchNorm(3, track_running_stats=tracked)).train(training)
    if not affine:
        nn.init.ones_(twin.weight)
    found = bn.gradients(x, grad)
    expected = torch.autograd.grad(twin(x), (x, twin.weight, twin.bias), grad)
    for actual, truth in zip(found, expected, strict=True):
        assert_close(actual, truth)
    (of_input,) = torch.autograd.grad(bn(x), x, grad)
    assert_close(of_input, expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_an_input_has_its_dtype_and_that_of_gradients_is_float64(
    dtype: torch.dtype,
) -> None:
    bn = used(ReferenceBatchNorm(3))
    x, grad = numbers(7, 3).to(dtype).requires_grad_(), numbers(7, 3, seed=1)
    (of_input,) = torch.autograd.grad(bn(x), x, grad)
    found = bn.gradients(x, grad)
    assert of_input.dtype is dtype
    assert {value.dtype for value in found} == {torch.float64}
    assert not any(value.requires_grad for value in found)
    torch.testing.assert_close(of_input, found.input.to(dtype))


def test_a_backward_works_after_later_batches_were_tracked() -> None:
    bn = used(ReferenceBatchNorm(3))
    x, later = numbers(7, 3).requires_grad_(), numbers(7, 3, seed=1)
    in_training, in_eval = bn(x), bn.eval()(x)
    expected = bn.gradients(x, later).input, bn.train().gradients(x, later).input
    bn(later)
    found = torch.autograd.grad(in_eval, x, later) + torch.autograd.grad(in_training, x, later)
    for actual, truth in zip(found, expected, strict=True):
        assert_close(actual, truth)


# torch's layers
LAYERS: list[tuple[Callable[..., Any], tuple[int, ...]]] = list(
    zip((nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), SHAPES, strict=True)
)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"momentum": 0.0},
    {"momentum": 1.0},
    {"momentum": 2.0, "eps": 0.5},
    {"momentum": -1.0},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False, "eps": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_it_agrees_with_layers_in_double(
    layer: Callable[..., Any], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    bn = used(layer(3, dtype=torch.float64, **options))
    reference = ReferenceBatchNorm(3, **options)
    reference.load_state_dict(bn.state_dict())
    for step, training in enumerate([False, True, True, True]):
        bn.train(training)
        reference.train(training)
        x, grad = numbers(*shape, seed=step).requires_grad_(), numbers(*shape, seed=step + 10)
        expected = torch.autograd.grad(y := bn(x), (x, *bn.parameters()), grad)
        found = reference.gradients(x, grad)
        for actual, truth in zip(found, expected, strict=False):
            assert_close(actual, truth)
        assert_close(reference(x).detach(), y.detach())
        assert_close_state(reference, bn)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_state_of_a_layer_makes_it_a_twin(options: dict[str, Any]) -> None:
    bn = used(nn.BatchNorm2d(3, **options))
    reference = ReferenceBatchNorm(3, **options)
    assert reference.load_state_dict(bn.state_dict()) == ([], [])
    for name, value in reference.state_dict().items():
        assert value.dtype is (torch.int64 if name.endswith("tracked") else torch.float64)
        assert torch.equal(value, bn.state_dict()[name].to(value.dtype))
    x = numbers(2, 3, 4, 4).float()
    torch.testing.assert_close(reference(x).float(), bn(x))
