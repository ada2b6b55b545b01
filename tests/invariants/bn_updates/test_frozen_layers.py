"""What is frozen is nobody's to update, unless it is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants import (
    GateError,
    Guard,
    InvariantBroken,
    InvariantHazard,
    bn_updates,
    frozen_bn,
    trains,
)
from tests.invariants.bn_updates.steps import broken, causes, train, values
from tests.watching import watching


class Finetuned(nn.Module):
    """A frozen backbone, which train() leaves in eval, and a head with a BN layer."""

    def __init__(self, *, affine: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=affine))
        self.backbone.requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.backbone(batch))

    def train(self, mode: bool = True) -> Finetuned:
        super().train(mode)
        self.backbone.eval()
        return self


def train_head(model: nn.Module, *, mode: bool = True) -> None:
    model.train(mode)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(values()).square().sum().backward()
    optimizer.step()


@pytest.mark.filterwarnings("error::pytest_bninvariants.InvariantHazard")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("guard", "layers"), [(bn_updates, 1), (trains, 5)])
def test_a_frozen_layer_of_a_fresh_model_is_left_alone(
    guard: Callable[[nn.Module], Guard], layers: int, affine: bool
) -> None:
    model = Finetuned(affine=affine)
    with frozen_bn(model, "backbone"), watching(guard(model), layers=layers):
        train_head(model)


@pytest.mark.parametrize("guard", [bn_updates, trains])
def test_a_frozen_layer_that_is_named_must_update(guard: Callable[..., Guard]) -> None:
    model = Finetuned()
    with pytest.raises(InvariantBroken) as caught, guard(model, "backbone.1"):
        train_head(model)
    assert "stuck-in-eval" in causes(caught.value.verdict)


def test_a_layer_that_asks_for_a_gradient_and_is_stuck_in_eval_is_told() -> None:
    model = Finetuned()
    verdict = broken(model, lambda: train_head(model, mode=False))
    assert [cause.layers for cause in verdict.causes] == [("head.1",)]
    assert causes(verdict) == ["stuck-in-eval"]


def test_a_layer_without_parameters_goes_with_those_around_it() -> None:
    model = Finetuned(affine=False).requires_grad_(True)
    verdict = broken(model, lambda: train_head(model))
    assert [cause.layers for cause in verdict.causes] == [("backbone.1",)]
    alone = nn.BatchNorm1d(3, affine=False)
    verdict = broken(alone, lambda: alone.eval()(values()))
    assert causes(verdict) == ["stuck-in-eval"]


def test_a_frozen_layer_that_ran_in_training_mode_is_judged() -> None:
    model = Finetuned()
    model.backbone[1].momentum = 0.0

    def in_training() -> None:
        nn.Module.train(model)
        model(values())

    verdict = broken(model, in_training)
    assert [cause.layers for cause in verdict.causes] == [("backbone.1",)]
    assert causes(verdict) == ["momentum-zero"]


def test_a_layer_that_the_step_unfreezes_must_update() -> None:
    model = Finetuned()

    def unfreeze() -> None:
        model.requires_grad_(True)
        train_head(model)

    assert causes(broken(model, unfreeze)) == ["stuck-in-eval"]


def test_a_fresh_model_whose_every_layer_is_frozen_holds_and_warns() -> None:
    model = Finetuned()
    model.head = nn.Linear(4, 2)

    def guarded() -> None:
        with frozen_bn(model, "backbone"), trains(model), watching(bn_updates(model), layers=0):
            train_head(model)

    with pytest.warns(InvariantHazard, match="nothing to update; name the layers that must"):
        guarded()
    with pytest.raises(GateError, match="nothing ran inside"), bn_updates(Finetuned()):
        pass


def test_the_call_that_put_a_part_in_eval_is_named_as_it_was_made() -> None:
    model = Finetuned().requires_grad_(True)
    (cause,) = broken(model, lambda: train(model.train(), values())).causes
    assert cause.place is not None
    assert cause.place.call == "Finetuned.train(True)"
    assert "have train() leave backbone.1 in training mode" in cause.fix


def test_a_layer_that_holds_its_weight_as_a_buffer_is_left_alone_in_any_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), FrozenBatchNorm2d(3), nn.BatchNorm2d(3)).train()
    with watching(bn_updates(model), layers=1):
        train(model, values(shape=(2, 3, 4, 4)))
    alone = nn.Sequential(FrozenBatchNorm2d(3)).train()
    with pytest.raises(GateError, match="no BN layer is in training"), bn_updates(alone):
        alone(values(shape=(2, 3, 4, 4)))


class FixedStatistics(nn.Module):
    """As torchvision's FrozenBatchNorm2d."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean) * self.running_var.rsqrt() * self.weight + self.bias


def test_a_layer_with_fixed_statistics_that_is_named_is_not_said_to_use_those_of_the_batch() -> (
    None
):
    model = nn.Sequential(FixedStatistics(), nn.BatchNorm1d(3))
    (cause,) = broken(model, lambda: model(torch.randn(4, 3)), "0", "1").causes
    assert (cause.name, cause.layers) == ("not-written", ("0",))
    assert "such as FrozenBatchNorm2d" in cause.why
    assert "batch statistics" not in cause.why
