"""Normalising with batch statistics is a violation, whether or not a bit changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_bninvariants import frozen, frozen_bn
from tests.state_change.pairs import (
    BATCH,
    BATCH_STATISTICS,
    FrozenByBuffers,
    OwnForward,
    Pair,
    found,
    judged,
    run,
)

FAMILY: dict[str, Callable[..., Any]] = {
    "BatchNorm1d": nn.BatchNorm1d,
    "SyncBatchNorm": nn.SyncBatchNorm,
    "InstanceNorm1d": nn.InstanceNorm1d,
    "LazyBatchNorm1d": lambda n, **options: _initialised(nn.LazyBatchNorm1d(**options)),
}


def _initialised(layer: nn.Module) -> nn.Module:
    layer(BATCH)
    return layer


class ByKeyword(nn.BatchNorm1d):
    def forward(self, batch: Tensor) -> Tensor:
        return F.batch_norm(
            batch, self.running_mean, self.running_var, training=self.training, momentum=0.0
        )


class Frozen(nn.BatchNorm1d):
    """Normalise with stored statistics whatever the mode is."""

    def forward(self, batch: Tensor) -> Tensor:
        return F.batch_norm(batch, self.running_mean, self.running_var, training=False)


class NeverStored(nn.BatchNorm1d):
    """Normalise with batch statistics whatever the mode is."""

    def forward(self, batch: Tensor) -> Tensor:
        return F.batch_norm(batch, None, None, training=True)


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
@pytest.mark.parametrize("layer", [nn.BatchNorm1d, FAMILY["LazyBatchNorm1d"], OwnForward])
def test_running_in_training_mode_moves_the_statistics(
    layer: Callable[..., Any], guard: Any
) -> None:
    verdict = judged(Pair(layer(2)).train(), run, guard=guard)
    expected = {("bn.running_mean", "values"), ("bn.running_var", "values")}
    if layer is not OwnForward:  # which does not count
        expected.add(("bn.num_batches_tracked", "values"))
    assert found(verdict) == expected


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
@pytest.mark.parametrize(
    "layer", [*FAMILY.values(), OwnForward, Frozen, lambda _: FrozenByBuffers()]
)
def test_running_in_eval_changes_nothing(layer: Callable[..., Any], guard: Any) -> None:
    bn = layer(2, track_running_stats=True) if layer is nn.InstanceNorm1d else layer(2)
    assert not judged(Pair(bn).eval(), run, guard=guard).hazards


@pytest.mark.parametrize("layer", [Frozen(2), FrozenByBuffers()])
def test_a_layer_that_uses_stored_statistics_in_training_mode_is_fine(layer: nn.Module) -> None:
    assert judged(Pair(layer).train(), run).holds


@pytest.mark.parametrize(
    ("bn", "training", "batches"),
    [
        (nn.BatchNorm1d(2, momentum=0.0), True, 2),
        (OwnForward(2, momentum=0.0), True, 2),
        (ByKeyword(2), True, 2),
        (nn.BatchNorm1d(2, track_running_stats=False), True, 2),
        (nn.BatchNorm1d(2, track_running_stats=False), False, 2),
        (nn.BatchNorm1d(2, affine=False, track_running_stats=False), False, 2),
        (NeverStored(2), False, 2),
        (NeverStored(2), True, 2),
        (nn.InstanceNorm1d(2, track_running_stats=True, momentum=0.0), True, 2),
    ],
    ids=repr,
)
def test_batch_statistics_are_a_violation_though_no_bit_changed(
    bn: nn.Module, training: bool, batches: int
) -> None:
    def step(model: nn.Module) -> None:
        for _ in range(batches):
            run(model)

    exclude = [name for name, _ in bn.named_buffers(prefix="bn") if name.endswith("tracked")]
    verdict = judged(Pair(bn).train(training), step, exclude=exclude)
    assert found(verdict) == BATCH_STATISTICS
    assert verdict.changes[0].text == f"normalised {batches} batches with batch statistics"
    if len(bn.state_dict()) > len(exclude):
        assert judged(Pair(bn), step, exclude=exclude, allow_batch_stats=True).holds
    if list(bn.parameters()):
        assert judged(Pair(bn), step, buffers=False).holds


def test_a_layer_whose_buffers_were_taken_away_uses_batch_statistics() -> None:
    bn = nn.BatchNorm1d(2)
    bn.running_mean = bn.running_var = None
    verdict = judged(Pair(bn).eval(), run)
    assert found(verdict) == BATCH_STATISTICS


def test_tracking_switched_off_makes_training_mode_a_violation_though_no_bit_changed() -> None:
    model = Pair(nn.BatchNorm1d(2)).train()
    model.bn.track_running_stats = False
    assert found(judged(model, run)) == BATCH_STATISTICS


def test_an_instance_norm_whose_tracking_the_step_switches_off_uses_batch_statistics() -> None:
    def step(model: Pair) -> None:
        model.bn.track_running_stats = False
        run(model)

    model = Pair(nn.InstanceNorm1d(2, track_running_stats=True)).eval()
    assert {name for name, _ in found(judged(model, step))} == {"bn.running_mean", "bn.running_var"}
    model = Pair(nn.InstanceNorm1d(2, track_running_stats=True, momentum=0.0)).eval()
    assert found(judged(model, step)) == BATCH_STATISTICS


def test_one_batch_is_said_in_the_singular() -> None:
    verdict = judged(Pair(nn.BatchNorm1d(2, track_running_stats=False)), run)
    assert verdict.changes[0].text == "normalised 1 batch with batch statistics"


def test_batch_statistics_are_not_said_twice_where_the_statistics_moved() -> None:
    verdict = judged(Pair(nn.BatchNorm1d(2)).train(), run)
    assert not any(change.kind == "batch-statistics" for change in verdict.changes)


def test_batch_statistics_may_be_allowed_while_the_state_is_watched() -> None:
    model = Pair(nn.BatchNorm1d(2)).train()
    verdict = judged(model, run, allow_batch_stats=True)
    assert {name for name, _ in found(verdict)} == {
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    }


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
def test_only_the_watched_layers_may_not_use_batch_statistics(guard: Any) -> None:
    model = nn.Sequential(Pair(nn.BatchNorm1d(2)).eval(), nn.BatchNorm1d(2).train())
    assert judged(model, run, "0", guard=guard).holds
    assert judged(model, run, exclude="1", guard=guard).holds
    assert not judged(model, run, "1", guard=guard).holds


def test_a_mode_that_a_forward_pre_hook_sets_is_the_one_that_counts() -> None:
    def to_eval(module: nn.Module, _: object) -> None:
        module.eval()

    model = Pair(nn.BatchNorm1d(2)).train()
    model.bn.register_forward_pre_hook(to_eval)
    assert judged(model, run).holds


def test_a_pre_hook_that_puts_a_layer_in_training_mode_is_seen_through() -> None:
    def to_train(module: nn.Module, _: object) -> None:
        module.train()

    model = Pair(nn.BatchNorm1d(2, momentum=0.0)).eval()
    model.bn.register_forward_pre_hook(to_train)
    verdict = judged(model, run, exclude="bn.num_batches_tracked")
    assert found(verdict) == BATCH_STATISTICS


def test_a_layer_that_is_put_in_training_mode_and_back_is_found_by_what_it_did() -> None:
    def step(model: Pair) -> None:
        model.train()
        run(model)
        model.eval()

    model = Pair(nn.BatchNorm1d(2, momentum=0.0)).eval()
    verdict = judged(model, step, exclude="*.num_batches_tracked")
    assert found(verdict) == BATCH_STATISTICS


def test_putting_a_layer_in_training_mode_and_back_is_no_violation() -> None:
    def step(model: Pair) -> None:
        model.train()
        model.eval()
        run(model)

    assert judged(Pair(nn.BatchNorm1d(2)).eval(), step).holds
