"""An update that is wrong is told with the common mistake that gives such values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.invariants.bn_updates.layer_forward import EndedForward, LayerForward
from pytest_bninvariants.invariants.bn_updates.reference_check import check_update, weight_of
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import StatisticsReader

M = 0.3
BATCH = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) * 3 + 5
MEAN, VAR, BIASED = BATCH.mean(0), BATCH.var(0), BATCH.var(0, unbiased=False)
OLD = torch.tensor([2.0, 7.0])


def layer_with(dtype: torch.dtype = torch.float32) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(2, momentum=M)
    for each in (layer.running_mean, layer.running_var):
        assert each is not None
        each.copy_(OLD)
    return layer.to(dtype)


def forward_of(layer: nn.Module, run: Callable[[], object], x: Tensor = BATCH) -> EndedForward:
    forward = LayerForward.begin(StatisticsReader(layer), x)
    forward.add_part(x)
    with torch.no_grad():
        run()
    ended = forward.end(None, failed=False)
    return ended.on_host(ended.pieces)


def mixed(new: Tensor) -> Tensor:
    return (1 - M) * OLD + M * new


RIGHT = {"running_mean": mixed(MEAN), "running_var": mixed(VAR)}


@pytest.mark.parametrize(
    ("name", "stored", "fits"),
    [
        ("running_mean", OLD, "as if the batch had been ignored"),
        ("running_var", OLD, "as if the batch had been ignored"),
        ("running_mean", M * OLD + (1 - M) * MEAN, "as if momentum were 0.7, the weight of the"),
        ("running_var", M * OLD + (1 - M) * VAR, "as if momentum were 0.7, the weight of the"),
        ("running_mean", MEAN, "as if only the batch had been stored"),
        ("running_var", VAR, "as if only the batch had been stored"),
        ("running_var", mixed(BIASED), "with the biased variance, (n-1)/n of the unbiased one"),
        ("running_var", mixed(VAR.sqrt()), "with the standard deviation, not the variance"),
        ("running_mean", mixed(BIASED), ""),
        ("running_var", mixed(2 * VAR), ""),
    ],
)
def test_the_mistake_that_fits_a_wrong_statistic_is_told(
    name: str, stored: Tensor, fits: str
) -> None:
    layer = layer_with()

    def run() -> None:
        for key, value in (RIGHT | {name: stored}).items():
            layer.get_buffer(key).copy_(value)

    check = check_update(forward_of(layer, run), 4, is_right=False)
    (wrong,) = check.wrong
    assert (wrong.name, wrong.update) == (name, 4)
    assert wrong.fits.startswith(fits)
    assert bool(wrong.fits) == bool(fits)
    assert wrong.text.startswith("2 of 2 values, ")


def test_a_right_update_is_judged_and_one_that_is_known_to_be_right_is_not_looked_at() -> None:
    layer = layer_with()
    forward = forward_of(layer, lambda: layer(BATCH))
    check = check_update(forward, 1, is_right=False)
    assert (check.batch is not None, check.wrong, check.counter_change) == (True, [], 1)
    assert (check.is_constant, check.rounded_away, check.is_guess) == (False, False, False)
    wrong = forward_of(layer, lambda: layer.running_mean.add_(1))
    assert not check_update(wrong, 1, is_right=True).wrong
    assert check_update(wrong, 1, is_right=True).batch is not None


def test_one_wrong_channel_is_told_by_its_number() -> None:
    layer = layer_with()

    def run() -> None:
        layer(BATCH)
        layer.running_mean[1] = 0

    (wrong,) = check_update(forward_of(layer, run), 1, is_right=False).wrong
    assert wrong.text.startswith(
        f"1 of 2 values, 0 at [1], expected {RIGHT['running_mean'][1]:.6g}"
    )


def test_an_update_that_bfloat16_rounds_away_is_told_and_one_of_float32_is_not() -> None:
    for dtype, rounded in ((torch.bfloat16, True), (torch.float32, False)):
        layer = layer_with(dtype)
        layer.momentum = 1e-4
        check = check_update(forward_of(layer, lambda: None), 1, is_right=False)
        assert check.rounded_away == rounded
        assert bool(check.wrong) != rounded


def test_a_batch_of_one_value_a_channel_is_told() -> None:
    layer, constant = layer_with(), torch.ones(8, 2)
    check = check_update(forward_of(layer, lambda: layer(constant), constant), 1, is_right=False)
    assert check.is_constant


@pytest.mark.parametrize(
    ("momentum", "by_call", "weight"),
    [
        (0.2, False, 0.2),
        (None, False, 0.25),
        (None, True, None),
        (float("nan"), False, None),
        (0.0, False, 0.0),
    ],
)
def test_the_weight_of_a_batch_is_the_momentum_or_that_of_a_cumulative_average(
    momentum: float | None, by_call: bool, weight: float | None
) -> None:
    layer = layer_with()
    layer.num_batches_tracked.fill_(3)
    forward = forward_of(layer, lambda: layer(BATCH))
    assert weight_of(forward._replace(momentum=momentum, by_call=by_call)) == weight
    unknown = check_update(forward._replace(momentum=float("nan")), 1, is_right=False)
    assert unknown.batch is None
    assert not unknown.wrong
