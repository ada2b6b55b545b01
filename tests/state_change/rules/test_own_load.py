"""A state_dict that was kept by reference restores nothing, and the verdict says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import Verdict
from tests.state_change.rules.branches import Branches, train, verdict_of


def moved(model: Branches) -> None:
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def names(verdict: Verdict) -> tuple[str, ...]:
    return tuple(cause.name for cause in verdict.causes)


@pytest.mark.parametrize(
    "keep",
    [
        lambda model: model.state_dict(),
        lambda model: dict(model.state_dict()),
        lambda model: copy.copy(model.state_dict()),
        lambda model: {name: value.cpu() for name, value in model.state_dict().items()},
        lambda model: dict(model.named_parameters()),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_that_holds_the_live_tensors(
    model: Branches, keep: Callable[[nn.Module], Any], assign: bool
) -> None:
    def step() -> None:
        best = keep(model)
        moved(model)
        model.load_state_dict(best, assign=assign)

    verdict = verdict_of(model, step)
    assert names(verdict)[0] == "shared-memory"
    assert set(names(verdict)[1:]) <= {"gradient-step", *(["replaced"] if assign else [])}
    cause = verdict.causes[0]
    assert cause.tensors == ("frozen.weight", "frozen.bias")
    assert "copy.deepcopy(model.state_dict())" in cause.fix
    assert cause.place is not None
    assert (cause.place.file, cause.place.call) == (__file__, "Branches.load_state_dict()")


def test_a_part_that_is_loaded_from_itself_is_named_alone(model: Branches) -> None:
    def step() -> None:
        best = {name: value.clone() for name, value in model.state_dict().items()}
        best["frozen.bias"] = model.frozen.bias
        moved(model)
        model.load_state_dict(best)

    verdict = verdict_of(model, step)
    assert verdict.changed_tensors == ("frozen.bias",)
    assert names(verdict) == ("shared-memory", "gradient-step")


def test_a_submodule_that_is_loaded_from_itself(model: Branches) -> None:
    def step() -> None:
        best = model.frozen.state_dict()
        moved(model)
        model.frozen.load_state_dict(best)

    assert names(verdict_of(model, step)) == ("shared-memory", "gradient-step")


def test_a_copy_that_holds_other_values_is_a_load(model: Branches) -> None:
    def step() -> None:
        moved(model)
        best = copy.deepcopy(model.state_dict())
        moved(model)
        model.load_state_dict(best)

    assert "shared-memory" not in names(verdict_of(model, step))


def test_a_load_from_itself_before_the_change_would_have_restored_nothing(model: Branches) -> None:
    def step() -> None:
        model.load_state_dict(model.state_dict())
        moved(model)

    assert names(verdict_of(model, step)) == ("gradient-step",)


def test_another_model_that_shares_no_memory_is_a_load(model: Branches) -> None:
    other = copy.deepcopy(model)
    moved(other)
    verdict = verdict_of(model, lambda: model.load_state_dict(other.state_dict()))
    assert names(verdict) == ("loaded",)
