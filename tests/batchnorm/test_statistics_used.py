"""What a layer's own forward normalised with is told by its output, if by nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.state_change.pairs import BATCH, BATCH_STATISTICS, FrozenByBuffers, Pair, found, judged

early_bound = torch.batch_norm  # as `from torch import batch_norm` binds it


class ByHand(nn.Module):
    """Normalise by hand, and store nothing."""

    def __init__(self, unbiased: bool = False) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.full((2,), 0.5))
        self.register_buffer("running_var", torch.full((2,), 2.0))
        self.weight, self.bias = (
            nn.Parameter(torch.tensor([1.0, -2.0])),
            nn.Parameter(torch.ones(2)),
        )
        self.unbiased, self.always = unbiased, False

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training or self.always:
            mean, var = x.mean((0, 2)), x.var((0, 2), unbiased=self.unbiased)
        mean, var, weight, bias = (each.view(2, 1) for each in (mean, var, self.weight, self.bias))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias


class EarlyBound(nn.BatchNorm1d):
    batch = True

    def forward(self, x: Tensor) -> Tensor:
        state = self.weight, self.bias, self.running_mean, self.running_var
        return early_bound(x, *state, self.batch, 0.0, self.eps, False)


class Native(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        state = self.weight, self.bias, self.running_mean, self.running_var
        return torch.native_batch_norm(x, *state, True, 0.0, self.eps)[0]


class StoredInTraining(EarlyBound):
    batch = False


class Doubled(ByHand):
    """Give an output that neither statistics explain."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x).exp()


def twice(model: nn.Module) -> None:
    model(BATCH)
    model(BATCH)


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_norm_by_hand_in_training_mode_is_a_violation(unbiased: bool) -> None:
    verdict = judged(Pair(ByHand(unbiased)).train(), twice)
    assert found(verdict) == BATCH_STATISTICS
    assert [cause.name for cause in verdict.causes] == ["training-mode"]


@pytest.mark.parametrize("layer", [EarlyBound, Native])
def test_a_function_that_is_not_heard_is_found_by_its_output(
    layer: Callable[..., nn.Module],
) -> None:
    verdict = judged(Pair(layer(2)).eval(), twice)
    assert found(verdict) == BATCH_STATISTICS
    assert verdict.changes[0].text == "normalised 2 batches with batch statistics"
    assert [cause.name for cause in verdict.causes] == ["update-in-eval"]


@pytest.mark.parametrize(
    ("layer", "training"),
    [
        (ByHand(), False),
        (StoredInTraining(2), False),
        (StoredInTraining(2), True),
        (FrozenByBuffers(), False),
        (FrozenByBuffers(), True),
    ],
)
def test_stored_statistics_are_no_violation_and_no_hazard(layer: nn.Module, training: bool) -> None:
    verdict = judged(Pair(layer).train(training), twice)
    assert verdict.holds
    assert not [hazard for hazard in verdict.hazards if "own forward" in hazard.text]


def test_batch_statistics_that_are_the_stored_ones_are_no_violation() -> None:
    layer = ByHand()
    model = Pair(layer).eval()
    layer.running_mean.copy_(BATCH.mean((0, 2)))
    layer.running_var.copy_(BATCH.var((0, 2), unbiased=False))
    layer.always = True
    assert judged(model, twice).holds


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_an_output_that_tells_nothing_is_a_hazard_in_training_mode(training: bool) -> None:
    verdict = judged(Pair(Doubled()).train(training), twice)
    assert verdict.holds
    assert any("own forward" in hazard.text for hazard in verdict.hazards) == training


def test_a_flip_between_two_forwards_is_judged_by_itself() -> None:
    def step(model: nn.Module) -> None:
        model.eval()(BATCH)
        model.train()(BATCH)

    assert found(judged(Pair(ByHand()).eval(), step)) == BATCH_STATISTICS


def test_batch_statistics_may_be_allowed() -> None:
    assert judged(Pair(ByHand()).train(), twice, allow_batch_stats=True).holds
    verdict = judged(Pair(Doubled()).train(), twice, allow_batch_stats=True)
    assert not [hazard for hazard in verdict.hazards if "own forward" in hazard.text]
