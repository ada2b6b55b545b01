"""Names of modules and tensors, with and without what wrappers put into them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pytest_bninvariants.selection.model_names import ModelNames, covers
from pytest_bninvariants.selection.walk import (
    all_parameters,
    all_tensors,
    named_modules,
    own_tensors,
)


def wrapped(inner: nn.Module, name: str = "module") -> nn.Module:
    return nn.ModuleDict({name: inner})


@pytest.mark.parametrize(
    ("pattern", "names", "covered"),
    [
        ("", ["a"], True),
        ("a", ["a"], True),
        ("a", ["a.b"], True),
        ("a", ["ab"], False),
        ("a.b", ["a"], False),
        ("a", ["b", "a.c"], True),
        ("*.b", ["a.b"], True),
        ("*.b", ["a.b.c"], True),
        ("*.b", ["a.bc"], False),
        ("a?", ["ab"], True),
        ("a?", ["abc"], False),
        ("a[b]*", ["a[b]c"], True),
        ("a[b]*", ["ab"], False),
    ],
)
def test_a_pattern_covers_a_name_and_what_is_below_it(
    pattern: str, names: list[str], covered: bool
) -> None:
    assert covers(pattern, *names) == covered


@pytest.mark.parametrize(
    "name", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_a_wrappers_name_is_left_out_of_bare_names(name: str) -> None:
    layer = nn.Linear(1, 1)
    names = ModelNames.from_model(nn.Sequential(wrapped(layer, name)))
    assert names.bare == {"": "", "0": "0", f"0.{name}": "0"}
    assert names.by_bare_name["0"] is layer
    assert names.tensors["0.weight"].name == f"0.{name}.weight"
    assert names.tensors["0.weight"].layer == f"0.{name}"
    assert names.strip_wrappers(f"{name}.0") == "0"
    assert names.strip_wrappers(f"0.{name}") == f"0.{name}"


def test_a_child_of_such_a_name_is_no_wrapped_module_beside_others_or_below_a_bn_layer() -> None:
    beside = nn.ModuleDict({"module": nn.Linear(1, 1), "other": nn.Linear(1, 1)})
    assert ModelNames.from_model(beside).bare["module"] == "module"
    layer = nn.BatchNorm1d(1)
    layer.module = nn.BatchNorm1d(1)
    assert ModelNames.from_model(layer).bare["module"] == "module"
    assert ModelNames.from_model(wrapped(nn.Linear(1, 1), "inner")).bare["inner"] == "inner"


def test_a_tensor_whose_bare_name_is_taken_keeps_its_full_one() -> None:
    outer = wrapped(nn.Linear(1, 1))
    outer.register_buffer("weight", torch.ones(1))
    names = ModelNames.from_model(nn.Sequential(outer))
    assert list(names.tensors) == ["0.weight", "0.module.weight", "0.bias"]


def test_a_parametrized_tensor_belongs_to_its_layer() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)))
    layers = {watched.layer for watched in ModelNames.from_model(net).tensors.values()}
    assert layers == {"0"}
    alone = parametrizations.weight_norm(nn.Linear(2, 2))
    layers = {watched.layer for watched in ModelNames.from_model(alone).tensors.values()}
    assert layers == {""}


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("0", True), ("0.weight", True), ("*.bias", True), ("1", False), ("0.weigh", False)],
)
def test_a_pattern_matches_modules_and_tensors(pattern: str, matches: bool) -> None:
    assert ModelNames.from_model(nn.Sequential(nn.Linear(1, 1))).matches(pattern) == matches


def test_a_walk_goes_over_every_name_and_over_what_is_there() -> None:
    layer = nn.BatchNorm1d(1)
    layer.bias = None  # type: ignore[assignment]
    layer.register_buffer("empty", None)
    net = nn.ModuleDict({"a": layer, "b": layer})
    net.add_module("none", None)
    assert [name for name, _ in named_modules(net)] == ["", "a", "b"]
    assert [name for name, _ in named_modules(layer, "x")] == ["x"]
    found = [(kind, name) for kind, name, _ in own_tensors(layer)]
    statistics = ["running_mean", "running_var", "num_batches_tracked"]
    assert found == [("parameter", "weight"), *(("buffer", name) for name in statistics)]
    assert len([*all_tensors(net)]) == 8
    assert [*all_parameters(net)] == [layer.weight, layer.weight]
