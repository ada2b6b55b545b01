"""What is a violation, and what is only worth saying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pytest_bninvariants import FrozenStateChanged, frozen, frozen_bn
from tests.state_change.pairs import (
    FrozenByBuffers,
    Pair,
    found,
    judged,
    run,
)


@pytest.mark.parametrize("guard", [frozen, frozen_bn])
@pytest.mark.parametrize("options", [{}, {"buffers": False}, {"parameters": False}])
def test_another_eps_is_a_violation(guard: Any, options: dict[str, bool]) -> None:
    def step(model: Pair) -> None:
        model.bn.eps = 1e-3
        run(model)

    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step, guard=guard, **options)
    assert found(verdict) == {("bn", "eps")}
    assert verdict.changes[0].text == "eps 1e-05 -> 0.001"
    assert verdict.changed_tensors == ()
    assert verdict.changed_layers == ("bn",)
    (cause,) = verdict.causes
    assert (cause.name, cause.layers, cause.tensors) == ("eps-set", ("bn",), ())
    assert cause.why == "eps of bn was set; every output depends on it, in eval too"
    assert "before the guarded step" in cause.fix


def test_an_eps_that_is_put_back_is_no_violation() -> None:
    def step(model: Pair) -> None:
        model.bn.eps = 1e-3
        model.bn.eps = 1e-5
        run(model)

    assert judged(Pair(nn.BatchNorm1d(2)).eval(), step).holds


def test_eps_of_a_bn_layer_by_its_buffers_is_watched() -> None:
    model = Pair(FrozenByBuffers())
    model.bn.eps = 1e-5
    verdict = judged(model, lambda m: setattr(m.bn, "eps", 2e-5))
    assert found(verdict) == {("bn", "eps")}


def test_an_eps_that_a_layer_never_had_is_not_read_by_it() -> None:
    def step(model: Pair) -> None:
        model.bn.eps = 1e-3
        run(model)

    assert judged(Pair(FrozenByBuffers()), step).holds


def test_eps_of_what_is_no_bn_layer_is_not_watched() -> None:
    def step(model: Any) -> None:
        model[0].eps = 1e-3
        run(model)

    assert judged(nn.Sequential(nn.LayerNorm(5)), step, guard=frozen).holds


def test_a_step_that_freezes_is_no_violation() -> None:
    def step(model: Pair) -> None:
        model.requires_grad_(False).eval()
        run(model)

    assert not judged(Pair(nn.BatchNorm1d(2)).train(), step, guard=frozen).hazards


@pytest.mark.parametrize(
    ("step", "names"),
    [
        (lambda m: m.half(), {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}),
        (lambda m: m.bn.double(), {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}),
    ],
)
def test_a_cast_is_a_violation(step: Callable[[Any], object], names: set[str]) -> None:
    verdict = judged(Pair(nn.BatchNorm1d(2)).eval(), step)
    assert found(verdict) == {(name, "dtype") for name in names}


@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_a_cast_there_and_back_is_no_violation_where_no_bit_is_lost() -> None:
    def step(model: Pair) -> None:
        model.double().float()
        run(model)

    assert judged(Pair(nn.BatchNorm1d(2)).eval(), step, guard=frozen).holds


@pytest.mark.parametrize(
    ("step", "kinds"),
    [
        (lambda m: delattr(m, "bn"), {"gone"}),
        (lambda m: setattr(m, "bn", nn.Identity()), {"gone"}),
        (lambda m: setattr(m, "bn", nn.BatchNorm1d(3)), {"shape"}),
        (lambda m: delattr(m.bn, "bias"), {"gone"}),
        (lambda m: setattr(m, "bn2", nn.BatchNorm1d(2)), {"new"}),
        (lambda m: m.bn.register_buffer("extra", torch.zeros(1)), {"new"}),
    ],
)
def test_names_that_are_gone_new_or_of_another_shape_are_violations(
    step: Callable[[Any], object], kinds: set[str]
) -> None:
    assert {kind for _, kind in found(judged(Pair(nn.BatchNorm1d(2)).eval(), step))} == kinds


def test_what_is_new_elsewhere_is_none_of_the_guards_business() -> None:
    def step(model: Pair) -> None:
        model.extra = nn.BatchNorm1d(2)
        model.other.register_buffer("extra", torch.zeros(1))
        run(model)

    assert judged(Pair(nn.BatchNorm1d(2)).eval(), step, "bn").holds


def test_a_name_that_was_there_but_not_watched_is_not_new() -> None:
    def step(model: Pair) -> None:
        model.bn = model.bn
        run(model)

    model = Pair(nn.BatchNorm1d(2)).eval()
    assert judged(model, step, buffers=False).holds


def test_changes_come_in_the_models_order() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(5, 5), nn.BatchNorm1d(2))

    def step(model: Any) -> None:
        model[2].eps = 1.0
        model[2].weight.data.add_(1)
        model[1].weight.data.add_(1)
        model[0].eps = 1.0

    verdict = judged(model.eval(), step, guard=frozen)
    assert verdict.changed_layers == ("0", "1", "2")


def test_layers_and_tensors_are_counted() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(5, 5), nn.BatchNorm1d(2)).eval()
    verdict = judged(model, run, guard=frozen)
    assert (verdict.layers, verdict.tensors) == (3, 12)
    verdict = judged(model, run)
    assert (verdict.layers, verdict.tensors) == (2, 10)
    verdict = judged(model, run, "0", parameters=False)
    assert (verdict.layers, verdict.tensors) == (1, 3)


def test_the_state_of_a_parametrized_layer_that_is_the_model_itself() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1

    model = nn.BatchNorm1d(3).eval()
    parametrize.register_parametrization(model, "weight", Same())
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model), torch.no_grad():
        model.parametrizations.weight.original.add_(1)
    (change,) = caught.value.verdict.changes
    assert change.name == "parametrizations.weight.original"


@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_an_expanded_parameter_in_an_optimizer_of_ones_own() -> None:
    class Mine(torch.optim.SGD):
        pass

    model = nn.Linear(3, 1)
    model.register_parameter("at", nn.Parameter(torch.zeros(1).expand(16), requires_grad=False))
    optimizer = Mine(model.parameters(), 0.1)
    with frozen(model, "at") as guard:
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    assert guard.verdict.holds
    assert (guard.verdict.layers, guard.verdict.tensors) == (1, 1)
