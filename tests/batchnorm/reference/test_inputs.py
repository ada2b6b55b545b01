"""What the reference takes and refuses, and that it leaves all else alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm, rows
from tests.batchnorm.reference.checks import (
    MODES,
    assert_close,
    assert_close_state,
    assert_same_state,
    numbers,
    state,
    used,
)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (2, 3, 4, 0), (0, 3, 2, 2, 2)])
def test_an_empty_batch_is_counted_and_leaves_the_statistics(
    shape: tuple[int, ...], training: bool
) -> None:
    bn = used(ReferenceBatchNorm(3)).train(training)
    before, x = state(bn), torch.zeros(shape)
    y = bn(x)
    assert (y.shape, y.dtype) == (x.shape, torch.float64)
    assert_same_state(bn, before, "num_batches_tracked")
    assert bn.num_batches_tracked.item() == 3 + training
    gradients = bn.gradients(x, x)
    assert (gradients.input.shape, gradients.input.dtype) == (x.shape, torch.float64)
    zeros = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(gradients.weight, zeros)
    assert torch.equal(gradients.bias, zeros)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
def test_an_empty_batch_does_to_a_layer_what_it_does_here(shape: tuple[int, ...]) -> None:
    bn = used(nn.BatchNorm1d(3, dtype=torch.float64))
    reference = ReferenceBatchNorm(3)
    reference.load_state_dict(bn.state_dict())
    assert reference(numbers(*shape)).shape == bn(numbers(*shape)).shape
    assert_same_state(reference, state(bn))


ONE_VALUE = [(1, 3), (1, 3, 1), (1, 3, 1, 1), (1, 3, 1, 1, 1)]


@pytest.mark.parametrize("shape", ONE_VALUE)
@pytest.mark.parametrize(("training", "tracked"), [(True, True), (True, False), (False, False)])
def test_one_value_per_channel_has_no_batch_statistics(
    shape: tuple[int, ...], training: bool, tracked: bool
) -> None:
    bn = ReferenceBatchNorm(3, track_running_stats=tracked).train(training)
    before = state(bn)
    with pytest.raises(ValueError, match=r"one value per channel has no variance: input \(1, 3"):
        bn(numbers(*shape))
    assert_same_state(bn, before, "num_batches_tracked")


@pytest.mark.parametrize("shape", ONE_VALUE)
def test_one_value_per_channel_is_normalised_with_stored_statistics(shape: tuple[int, ...]) -> None:
    bn = used(ReferenceBatchNorm(3)).eval()
    others = torch.cat([numbers(*shape), numbers(*shape, seed=1)])
    assert torch.equal(bn(numbers(*shape)), bn(others)[:1])


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 3), (1, 3, 1, 2)])
def test_two_values_per_channel_are_enough(shape: tuple[int, ...]) -> None:
    bn = ReferenceBatchNorm(3, eps=0.0, momentum=1.0)
    assert_close(bn(numbers(*shape)).abs().detach(), torch.ones(shape, dtype=torch.float64))
    low, high = (rows(numbers(*shape))[:, k] for k in (0, 1))
    assert_close(bn.running_var, (high - low).square() / 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((), "2 to 5 dimensions, this has 0"),
        ((3,), "2 to 5 dimensions, this has 1"),
        ((2, 3, 1, 1, 1, 1), "2 to 5 dimensions, this has 6"),
        ((3, 2), "expected 3 channels, got 2"),
        ((3, 4, 3), "expected 3 channels, got 4"),
        ((0, 1), "expected 3 channels, got 1"),
    ],
)
def test_a_wrong_rank_or_number_of_channels_is_an_error(
    shape: tuple[int, ...], said: str, training: bool
) -> None:
    bn = ReferenceBatchNorm(3).train(training)
    before = state(bn)
    for call in (bn, lambda x: bn.gradients(x, x)):
        with pytest.raises(ValueError, match=said):
            call(numbers(*shape))
    assert_same_state(bn, before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_narrow_input_is_taken_at_its_exact_values(dtype: torch.dtype, training: bool) -> None:
    bn, twin = (used(ReferenceBatchNorm(3)).train(training) for _ in range(2))
    x = numbers(4, 3, 5).to(dtype)
    y = bn(x)
    assert y.dtype is torch.float64
    assert torch.equal(y, twin(x.double()))
    assert_same_state(bn, state(twin))
    found, expected = bn.gradients(x, x), twin.gradients(x.double(), x.double())
    assert all(map(torch.equal, found, expected))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other sample": lambda x: torch.stack([x, -x], 1).flatten(0, 1)[::2],
    "part of more channels": lambda x: torch.cat([x, x, x], 1)[:, 3:6],
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_an_input_lies_in_memory_does_not_matter(layout: str, training: bool) -> None:
    x = numbers(4, 3, 2, 5)
    other = LAYOUTS[layout](x)
    assert torch.equal(other, x)
    assert other.stride() != x.stride() or not other.is_contiguous()
    bn, twin = (used(ReferenceBatchNorm(3)).train(training) for _ in range(2))
    assert_close(bn(other).detach(), twin(x).detach())
    assert_close_state(bn, twin)
    for actual, expected in zip(bn.gradients(other, other), twin.gradients(x, x), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("training", [True, False])
def test_an_expanded_input_is_many_equal_samples(training: bool) -> None:
    bn, twin = (used(ReferenceBatchNorm(3)).train(training) for _ in range(2))
    x = numbers(1, 3, 5).expand(4, 3, 5)
    assert_close(bn(x).detach(), twin(x.clone()).detach())
    assert_close_state(bn, twin)


@pytest.mark.parametrize("training", [True, False])
def test_input_and_gradient_are_not_written_to(training: bool) -> None:
    bn = used(ReferenceBatchNorm(3)).train(training)
    x, grad = numbers(4, 3, 5), numbers(4, 3, 5, seed=1)
    y = bn(x)
    bn.gradients(x, grad)
    y.detach().zero_()
    assert torch.equal(x, numbers(4, 3, 5))
    assert torch.equal(grad, numbers(4, 3, 5, seed=1))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_buffers_are_updated_in_place_and_carry_no_graph(momentum: float | None) -> None:
    bn = used(ReferenceBatchNorm(3, momentum=momentum))
    buffers, before = dict(bn.named_buffers()), state(bn)
    assert list(buffers) == ["running_mean", "running_var", "num_batches_tracked"]
    x = numbers(7, 3).requires_grad_()
    assert bn(x).requires_grad
    for name, buffer in buffers.items():
        assert getattr(bn, name) is buffer
        assert not buffer.requires_grad
        assert not torch.equal(buffer, before[name])


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_statistics_are_tracked_where_no_graph_is_made(grad_mode: Callable[[], Any]) -> None:
    bn, twin = used(ReferenceBatchNorm(3)), used(ReferenceBatchNorm(3))
    twin(numbers(7, 3))
    with grad_mode():
        assert not bn(numbers(7, 3)).requires_grad
    assert_same_state(bn, state(twin))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("training", "tracked"), MODES)
def test_gradients_leave_the_state(training: bool, tracked: bool, momentum: float | None) -> None:
    bn = used(ReferenceBatchNorm(3, momentum=momentum, track_running_stats=tracked)).train(training)
    before = state(bn)
    bn.gradients(numbers(7, 3).requires_grad_(), numbers(7, 3, seed=1))
    assert_same_state(bn, before)
    assert bn.training is training
    assert all(parameter.grad is None for parameter in bn.parameters())


def test_its_repr_shows_the_arguments() -> None:
    assert repr(ReferenceBatchNorm(3)) == (
        "ReferenceBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, bias=True,"
        " track_running_stats=True)"
    )
    assert repr(ReferenceBatchNorm(5, 0.5, None, False, False)) == (
        "ReferenceBatchNorm(5, eps=0.5, momentum=None, affine=False, bias=False,"
        " track_running_stats=False)"
    )


@pytest.mark.parametrize("training", [True, False])
def test_without_a_bias_the_weight_still_counts(training: bool) -> None:
    weighted, plain = ReferenceBatchNorm(3, bias=False), ReferenceBatchNorm(3, affine=False)
    weighted.train(training)
    plain.train(training)
    assert weighted.bias is None
    assert weighted.weight is not None
    with torch.no_grad():
        weighted.weight.copy_(torch.tensor([2.0, -3.0, 0.5]))
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weighted(x), plain(x) * weighted.weight)


def test_without_affine_there_is_no_bias_whatever_is_asked() -> None:
    layer = ReferenceBatchNorm(3, affine=False, bias=True)
    assert layer.bias is None
    assert layer.weight is None
