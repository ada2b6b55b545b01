"""Whether anything ran that could have changed what is watched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.state_change.outside_modules import OutsideModules
from pytest_bninvariants.state_change.run_detector import RunDetector


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.attention = nn.MultiheadAttention(2, 1)
        self.head = nn.Linear(2, 1)


def detector(model: nn.Module, *names: str, scripted: set[int] | None = None) -> RunDetector:
    selection = select(model, Scope(modules=names))
    own = set(map(id, selection.names.modules.values()))
    outside = OutsideModules(own, selection.tensors.tensors)
    return RunDetector(model, selection, scripted or set(), outside)


def ran(found: RunDetector, module: nn.Module) -> bool:
    found.saw_forward(module)
    return found.forward_ran


@pytest.mark.parametrize(
    ("names", "users"),
    [
        (["body.1"], {"body.1"}),
        (["body.0"], {"body.0", "body"}),
        (["head"], {"head", ""}),
        (["attention.out_proj"], {"attention.out_proj", "attention"}),
        (["body"], {"body.0", "body.1", "body", ""}),
    ],
)
def test_a_forward_counts_of_what_is_watched_and_of_what_may_use_it_without_a_call(
    names: list[str], users: set[str]
) -> None:
    model = Model()
    modules = dict(model.named_modules())
    told = {name for name, module in modules.items() if ran(detector(model, *names), module)}
    assert told == users


def test_all_that_is_in_a_layer_of_a_transformer_may_be_used_by_it() -> None:
    layer = nn.TransformerEncoderLayer(4, 1, 4)
    assert ran(detector(layer, "self_attn.out_proj"), layer)
    assert not ran(detector(nn.Sequential(layer), "0.self_attn.out_proj"), layer.norm1)


def test_a_module_outside_counts_if_it_holds_what_is_watched_or_shares_its_memory() -> None:
    model = Model()
    assert ran(detector(model, "body.1"), nn.Sequential(nn.ReLU(), model.body[1]))
    twin = nn.BatchNorm1d(2)
    assert not ran(detector(model, "body.1"), twin)
    twin.running_mean = model.body[1].running_mean  # type: ignore[assignment]
    assert ran(detector(model, "body.1"), twin)
    assert not ran(detector(model, "head"), twin)


def test_a_scripted_module_of_the_model_counts_if_it_holds_what_is_watched() -> None:
    model = Model()
    assert not ran(detector(model, "body.1"), model.body)
    assert ran(detector(model, "body.1", scripted={id(model.body)}), model.body)


def test_a_step_counts_of_an_optimizer_that_holds_a_parameter_of_the_model() -> None:
    model, other = Model(), nn.Linear(1, 1)
    found = detector(model, "body.1")
    assert not found.saw_anything()
    found.saw_step({id(each) for each in other.parameters()})
    assert not found.saw_anything()
    found.saw_step({id(model.head.weight), id(other.weight)})
    found.saw_step({id(other.weight)})
    assert found.optimizer_stepped
    assert found.saw_anything()
    assert not found.saw_use


def _replace(model: Any) -> None:
    model.head = nn.Linear(2, 1)


def _add(model: Any) -> None:
    model.more = nn.Linear(2, 1)


def _write(model: Any) -> None:
    with torch.no_grad():
        model.head.weight.mul_(1)


@pytest.mark.parametrize("change", [_replace, _add, _write])
def test_another_change_of_the_model_counts(change: Any) -> None:
    model = Model()
    found = detector(model, "body.1")
    change(model)
    assert found.saw_anything()
    assert not found.saw_use


def test_a_write_is_known_by_its_tensor_even_if_it_left_the_values() -> None:
    model = Model()
    found = detector(model)
    _write(model)
    assert found.was_written("head.weight")
    assert not found.was_written("head.bias")


@pytest.mark.parametrize("kind", ["forward_ran", "compiled_code_ran"])
def test_what_ran_may_have_used_what_is_watched(kind: str) -> None:
    found = detector(Model(), "body.1")
    found.compiled_code_ran = False
    assert not found.saw_use
    setattr(found, kind, True)
    assert found.saw_use
    assert found.saw_anything()
