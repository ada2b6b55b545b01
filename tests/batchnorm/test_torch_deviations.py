"""What torch itself fails, with the smallest cases: docs/torch-deviations.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm

fails = pytest.mark.xfail(strict=True, raises=AssertionError, reason="torch's own deviation")


@pytest.fixture
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@fails
@pytest.mark.usefixtures("one_thread")
def test_the_mean_of_many_ones_is_one() -> None:
    layer = nn.BatchNorm1d(1, momentum=1.0)
    with torch.no_grad():
        layer(torch.ones(2**25, 1))
    assert layer.running_mean == 1


def _drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x.requires_grad_(), g, ReferenceBatchNorm(shape[1]).gradients(x, g).input


@fails
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_transposed_gradient_gives_the_right_input_gradient(dtype: torch.dtype) -> None:
    layer = nn.BatchNorm2d(2).to(dtype)
    x, g, expected = _drawn((1, 2, 1, 3), dtype)
    layer(x).backward(g.transpose(0, -1).contiguous().transpose(0, -1))
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-3, atol=1e-3)


@fails
def test_an_expanded_gradient_is_added_up_in_float32() -> None:
    layer = nn.BatchNorm2d(1)
    layer(torch.randn(19, 1, 12, 5).bfloat16()).sum().backward()
    assert layer.bias.grad == 1140


@fails
def test_strided_half_inputs_are_computed_in_float32() -> None:
    x = torch.tensor([1.5390625, -0.29296875]).bfloat16().view(2, 1, 1, 1)
    x = torch.stack((x, torch.zeros_like(x)), -1)[..., 0].requires_grad_()
    g = torch.tensor([0.66015625, 0.267578125]).bfloat16().view(2, 1, 1, 1)
    nn.BatchNorm2d(1)(x).backward(g)
    expected = ReferenceBatchNorm(1).gradients(x, g).input
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), expected, rtol=0, atol=1e-5)


@fails
def test_a_strided_weight_of_a_channels_last_batch_is_read_with_its_strides() -> None:
    layer = nn.BatchNorm2d(2, dtype=torch.float64)
    x, g, expected = _drawn((2, 2, 2, 2), torch.float64)
    layer.weight.data = torch.tensor([[1.0, 9.0], [1.0, 9.0]], dtype=torch.float64)[:, 0]
    last = torch.channels_last
    layer(x.contiguous(memory_format=last)).backward(g.contiguous(memory_format=last))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=1e-3)


@fails
def test_a_forward_derivative_in_training_can_be_differentiated_by_the_input() -> None:
    layer = nn.BatchNorm2d(2, track_running_stats=False, dtype=torch.float64)
    twin = ReferenceBatchNorm(2, track_running_stats=False)
    x, t, _ = _drawn((2, 2, 2, 2), torch.float64)

    def tangent_gradient(module: nn.Module) -> Tensor:
        derivative = torch.func.jvp(module, (x,), (t,))[1]
        return torch.autograd.grad((derivative * t).sum(), x)[0]

    torch.testing.assert_close(tangent_gradient(layer), tangent_gradient(twin))


@fails
def test_a_forward_derivative_in_training_can_be_derived_forward_again() -> None:
    layer = nn.BatchNorm2d(2, track_running_stats=False, dtype=torch.float64)
    twin = ReferenceBatchNorm(2, track_running_stats=False)
    x, t, _ = _drawn((2, 2, 2, 2), torch.float64)

    def second_derivative(module: nn.Module) -> Tensor:
        def first(x: Tensor) -> Tensor:
            derivative: Tensor = torch.func.jvp(module, (x,), (t,))[1]
            return derivative

        second: Tensor = torch.func.jvp(first, (x.detach(),), (t,))[1]
        return second

    torch.testing.assert_close(second_derivative(layer), second_derivative(twin))


@fails
def test_a_call_in_training_leaves_the_graph_of_one_in_eval() -> None:
    layer = nn.BatchNorm2d(2, dtype=torch.float64).eval()
    x, g, _ = _drawn((2, 2, 2, 2), torch.float64)
    expected = ReferenceBatchNorm(2).eval().gradients(x, g).input
    y = layer(x)
    layer.train()(3 * g + 1)
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], expected)


@fails
def test_values_whose_squares_are_past_float32_are_normalised() -> None:
    x = 1e20 * _drawn((2, 2, 2, 2), torch.float32)[0]
    expected = ReferenceBatchNorm(2)(x)
    torch.testing.assert_close(nn.BatchNorm2d(2)(x).double(), expected, rtol=1e-3, atol=1e-3)
