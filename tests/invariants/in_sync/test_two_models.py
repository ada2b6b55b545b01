"""Two models hold the same state, or the first difference is named."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pytest_bninvariants import Verdict, in_sync
from tests.invariants.in_sync.updates import failure_text, hard_update, train


def test_a_target_network_that_was_updated_without_its_buffers(model: nn.Sequential) -> None:
    target = copy.deepcopy(model)
    train(model)
    hard_update(target, model, buffers=False)
    told = failure_text(lambda: in_sync(model, target))
    assert told.startswith("1 of 1 layer differs: 1 (left-behind)")
    assert "the running statistics of 1 in the second are the initial ones" in told
    assert "num_batches_tracked 1 -> 0" in told
    hard_update(target, model, buffers=True)
    verdict = in_sync(model, target, parameters=True)
    assert isinstance(verdict, Verdict)
    assert verdict.layers == 3


def test_a_model_that_nothing_was_loaded_into_is_told_as_that(model: nn.Sequential) -> None:
    train(model)
    torch.manual_seed(1)
    fresh = nn.Sequential(*(copy.deepcopy(part) for part in model))
    for part in fresh:
        part.reset_parameters()
    told = failure_text(lambda: in_sync(model, fresh, parameters=True))
    assert "and its parameters differ from those of the first, too: its state was not" in told
    assert "fix copy all of it: copy.load_state_dict(model.state_dict()), or load the" in told
    assert "which a loop over parameters() leaves" not in told


def test_parameters_are_compared_only_if_asked_for(model: nn.Sequential) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].bias += 1
    assert in_sync(model, other).layers == 1
    told = failure_text(lambda: in_sync(model, other, parameters=True))
    assert told.startswith("1 of 3 layers differs: 2")
    assert in_sync(model, other, "0", "1", parameters=True).layers == 2
    assert in_sync(model, other, exclude="2", parameters=True).layers == 2


def test_wrappers_do_not_change_names_and_what_they_hold_is_left_out(model: nn.Sequential) -> None:
    averaged = AveragedModel(model)
    assert in_sync(model, averaged, parameters=True).layers == 3
    assert in_sync(nn.DataParallel(model), averaged, parameters=True).layers == 3
    assert in_sync(torch.compile(model), copy.deepcopy(model), parameters=True).layers == 3
    averaged.module[1].running_mean += 1
    assert "1.running_mean" in failure_text(lambda: in_sync(averaged, model))


def test_a_name_that_only_one_of_them_has_is_told(model: nn.Sequential) -> None:
    other = copy.deepcopy(model)
    other.append(nn.BatchNorm1d(1))
    told = failure_text(lambda: in_sync(model, other))
    assert "3.running_mean only in the second: buffer, float32 (1,)" in told
    assert "3.running_mean only in the first" in failure_text(lambda: in_sync(other, model))
    other[1].running_mean = other[1].running_mean.double()
    assert "float32 -> float64" in failure_text(lambda: in_sync(model, other))


def test_replicas_that_combine_statistics_with_their_own_count(model: nn.Sequential) -> None:
    batch = torch.randn(24, 6) + torch.linspace(0, 3, 24)[:, None]
    shards = [batch[:4], batch[4:]]

    def replica(rank: int, *, own_count: bool) -> nn.BatchNorm1d:
        """Combine the shards' statistics as a SyncBatchNorm does, or with this rank's count."""
        counts = [len(shards[rank] if own_count else shard) for shard in shards]
        means = torch.stack([shard.mean(0) for shard in shards])
        squares = torch.stack([shard.var(0, unbiased=False) for shard in shards])
        weights = torch.tensor(counts)[:, None] / sum(counts)
        layer = nn.BatchNorm1d(6)
        mean = (weights * means).sum(0)
        layer.running_mean.copy_(mean)
        variance = (weights * (squares + (means - mean).square())).sum(0)
        layer.running_var.copy_(variance * sum(counts) / (sum(counts) - 1))
        return layer

    assert in_sync(replica(0, own_count=False), replica(1, own_count=False)).layers == 1
    told = failure_text(lambda: in_sync(replica(0, own_count=True), replica(1, own_count=True)))
    assert "running_var 6 of 6 values" in told


def test_statistics_that_were_transplanted_under_the_wrong_name() -> None:
    source = nn.BatchNorm1d(4)
    source(torch.randn(16, 4) - 3)
    mean, variance = source.running_mean, source.running_var

    def transplanted(variance: Tensor) -> nn.BatchNorm1d:
        layer = nn.BatchNorm1d(4)
        layer.running_mean, layer.running_var = mean.clone(), variance.clone()
        return layer

    assert in_sync(source, transplanted(variance), exclude="num_batches_tracked").layers == 1
    told = failure_text(lambda: in_sync(source, transplanted(mean), exclude="num_batches_tracked"))
    assert "running_var 4 of 4 values" in told
    assert "running_mean" not in told
