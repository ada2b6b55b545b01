"""What took a name, and what was switched, is a hazard where values are equal."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from pytest_bninvariants import frozen, frozen_bn
from tests.state_change.pairs import (
    BATCH,
    BATCH_STATISTICS,
    OwnForward,
    Pair,
    found,
    judged,
    run,
    said,
)

# pytest shows hazards as warnings; here the verdicts' own are read
pytestmark = pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")


def test_an_equal_tensor_that_took_the_name_is_a_hazard() -> None:
    def step(model: Pair) -> None:
        model.bn.weight = nn.Parameter(model.bn.weight.detach().clone())
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    text = "replaced by a tensor with equal values; an optimizer may still hold the old one"
    assert said(verdict) == {"bn.weight": text}


def test_a_parameter_that_became_a_buffer_is_a_hazard() -> None:
    def step(model: Pair) -> None:
        weight = model.bn.weight.detach()
        del model.bn.weight
        model.bn.register_buffer("weight", weight)
        mean = model.bn.running_mean
        del model.bn.running_mean
        model.bn.register_parameter("running_mean", nn.Parameter(mean, requires_grad=False))
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step, guard=frozen)
    assert "now a buffer, formerly a parameter" in said(verdict)["bn.weight"]
    assert "now a parameter, formerly a buffer" in said(verdict)["bn.running_mean"]


@pytest.mark.parametrize("also", [True, False])
def test_what_a_replaced_module_does_under_another_name_explains_nothing(also: bool) -> None:
    def step(model: Pair) -> None:
        old, model.bn = model.bn, nn.BatchNorm1d(2, momentum=1.0).train()
        for layer in (old.train(), model.bn) if also else (model.bn,):
            layer(BATCH)

    model = Pair(nn.BatchNorm1d(2).eval())
    model.again = model.bn
    causes = {cause.name: cause.layers for cause in judged(model, step).causes}
    assert causes == {"replaced": ("bn",)} | ({"mode-flip": ("again",)} if also else {})


def test_an_equal_module_that_took_the_name_is_a_hazard_for_each_of_its_tensors() -> None:
    def step(model: Pair) -> None:
        new = nn.BatchNorm1d(2).eval()
        new.load_state_dict(model.bn.state_dict())
        model.bn = new
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    assert set(said(verdict)) == {f"bn.{name}" for name in nn.BatchNorm1d(2).state_dict()}


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
def test_converting_to_sync_batch_norm_inside_the_step_is_a_hazard(guard: Any) -> None:
    def step(model: Pair) -> None:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        run(model)

    model = Pair(nn.BatchNorm1d(2)).eval()
    verdict = judged(model, step, guard=guard)
    assert isinstance(model.bn, nn.SyncBatchNorm)
    assert said(verdict)["bn"] == "type changed from BatchNorm1d to SyncBatchNorm"


def test_a_converted_layer_that_lost_its_mode_is_found() -> None:
    def step(model: Pair) -> None:
        fresh = OwnForward(2, momentum=0.0)
        fresh.load_state_dict(model.bn.state_dict())
        model.bn = fresh
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    assert found(verdict) == BATCH_STATISTICS


def test_what_the_old_module_did_before_it_was_replaced_counts() -> None:
    def step(model: Pair) -> None:
        model.bn.train()
        run(model)
        new = nn.BatchNorm1d(2).eval()
        new.running_mean.copy_(model.bn.running_mean)
        model.bn = new
        run(model)

    model = Pair(nn.BatchNorm1d(2, momentum=0.0)).eval()
    verdict = judged(model, step, exclude="bn.num_batches_tracked")
    assert found(verdict) == BATCH_STATISTICS


@pytest.mark.parametrize(
    ("attribute", "value", "text"),
    [
        ("momentum", 0.5, "momentum 0.1 -> 0.5"),
        ("momentum", None, "momentum 0.1 -> None"),
        ("track_running_stats", False, "track_running_stats True -> False"),
    ],
)
def test_a_setting_that_was_switched_is_a_hazard(attribute: str, value: object, text: str) -> None:
    def step(model: Pair) -> None:
        setattr(model.bn, attribute, value)
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    assert said(verdict) == {"bn": text}


def test_requires_grad_switched_on_is_a_hazard_and_switched_off_is_not() -> None:
    def step(model: Pair) -> None:
        model.bn.weight.requires_grad_(True)
        model.bn.bias.requires_grad_(False)
        run(model)

    model = Pair(nn.BatchNorm1d(2)).eval()
    model.bn.weight.requires_grad_(False)
    assert said(judged(model, step)) == {
        "bn.weight": "requires_grad was switched on during the step"
    }
