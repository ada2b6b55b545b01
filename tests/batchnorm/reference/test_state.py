"""The reference's momentum, counter, modes and tracking."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.reference import ReferenceBatchNorm
from tests.batchnorm.reference.checks import assert_close, assert_same_state, numbers, state, used


def means_of(batches: list[Tensor]) -> Tensor:
    return torch.stack([x.mean(0) for x in batches])


def test_the_initial_state_is_that_of_a_layer() -> None:
    expected = nn.BatchNorm1d(3, dtype=torch.float64).state_dict()
    assert_same_state(ReferenceBatchNorm(3), expected)


def test_without_momentum_statistics_are_the_plain_mean_over_batches() -> None:
    bn = ReferenceBatchNorm(3, momentum=None)
    batches = [numbers(7, 3, seed=seed) for seed in range(5)]
    for count, x in enumerate(batches, 1):
        bn(x)
        seen = batches[:count]
        assert_close(bn.running_mean, means_of(seen).mean(0))
        assert_close(bn.running_var, torch.stack([x.var(0) for x in seen]).mean(0))


def test_without_momentum_an_empty_batch_halves_what_the_next_one_brings() -> None:
    bn = ReferenceBatchNorm(3, momentum=None)
    bn(numbers(0, 3))
    bn(x := numbers(7, 3))
    assert_close(bn.running_mean, x.mean(0) / 2)
    assert_close(bn.running_var, (1 + x.var(0)) / 2)


@pytest.mark.parametrize(
    ("momentum", "old", "new"), [(0.0, 1.0, 0.0), (1.0, 0.0, 1.0), (2.0, -1.0, 2.0), (-1, 2, -1)]
)
def test_momentum_is_the_weight_of_the_new_batch(momentum: float, old: float, new: float) -> None:
    bn = used(ReferenceBatchNorm(3, momentum=momentum))
    before, x = state(bn), numbers(7, 3)
    bn(x)
    assert_close(bn.running_mean, old * before["running_mean"] + new * x.mean(0))
    assert_close(bn.running_var, old * before["running_var"] + new * x.var(0))
    assert bn.num_batches_tracked.item() == 4


def test_momentum_may_change_between_batches() -> None:
    bn = used(ReferenceBatchNorm(3, momentum=0.5))
    bn(numbers(7, 3))
    bn.momentum = 1.0
    bn(x := numbers(7, 3, seed=1))
    assert_close(bn.running_mean, x.mean(0))


def test_eval_leaves_the_state() -> None:
    bn = used(ReferenceBatchNorm(3)).eval()
    before = state(bn)
    bn(numbers(7, 3))
    assert_same_state(bn, before)


@pytest.mark.parametrize("training", [True, False])
def test_without_tracking_each_mode_uses_batch_statistics(training: bool) -> None:
    bn = ReferenceBatchNorm(3, eps=0.0, affine=False, track_running_stats=False).train(training)
    assert not bn.state_dict()
    assert bn.uses_batch_statistics
    y = bn(numbers(7, 3) * 5 + 2)
    assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64))
    assert_close(y.var(0, correction=0), torch.ones(3, dtype=torch.float64))
    assert not bn.state_dict()


def test_tracking_switched_off_keeps_the_statistics_for_eval() -> None:
    bn, twin = used(ReferenceBatchNorm(3)), used(ReferenceBatchNorm(3))
    bn.track_running_stats = False
    before, x = state(bn), numbers(7, 3)
    assert torch.equal(bn(x), twin(x))
    assert_same_state(bn, before)
    twin.load_state_dict(before)
    assert not bn.eval().uses_batch_statistics
    assert torch.equal(bn(x), twin.eval()(x))


def test_not_affine_is_an_affine_one_of_weight_1_and_bias_0() -> None:
    bn, plain = ReferenceBatchNorm(3), ReferenceBatchNorm(3, affine=False)
    assert (plain.weight, plain.bias, list(plain.parameters())) == (None, None, [])
    assert torch.equal(plain(numbers(7, 3)), bn(numbers(7, 3)))
    assert torch.equal(plain.eval()(numbers(7, 3)), bn.eval()(numbers(7, 3)))
