"""Names and patterns choose what is watched."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from pytest_bninvariants import GateError
from pytest_bninvariants.invariants.signature import option_names
from pytest_bninvariants.selection.model_names import ModelNames, covers
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from tests.selection.models import BN, STATE, deep, layers, tensors


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), BN),
        (("",), BN),
        (("*",), BN),
        (("layer1",), {"layer1.0.bn1", "layer1.1.bn1"}),
        (("layer1.*",), {"layer1.0.bn1", "layer1.1.bn1"}),
        (("layer1*",), {"layer1.0.bn1", "layer1.1.bn1", "layer10.0.bn1"}),
        (("layer?",), {"layer1.0.bn1", "layer1.1.bn1"}),
        (("layer??",), {"layer10.0.bn1"}),
        (("layer1.0",), {"layer1.0.bn1"}),
        (("layer1.0.bn1",), {"layer1.0.bn1"}),
        (("*bn",), {"stem.bn", "head.bn"}),
        (("*.bn",), {"stem.bn", "head.bn"}),
        (("*.0",), {"layer1.0.bn1", "layer10.0.bn1"}),
        (("stem", "head"), {"stem.bn", "head.bn"}),
        (("stem", "stem.bn"), {"stem.bn"}),
    ],
)
def test_a_pattern_covers_the_bn_layers_of_the_modules_it_matches(
    patterns: tuple[str, ...], expected: set[str]
) -> None:
    selection = select(deep(), Scope(modules=patterns, bn_only=True))
    assert layers(deep(), *patterns, bn_only=True) == expected
    assert set(selection.bn_layers) == expected
    assert set(selection.tensors) == {f"{layer}.{name}" for layer in expected for name in STATE}


@pytest.mark.parametrize("pattern", ["a[0]", "a[0]*", "?[0]", "*[0]"])
def test_brackets_in_names_are_plain_beside_wildcards_too(pattern: str) -> None:
    assert covers(pattern, "a[0]")
    assert covers(pattern, "a[0].weight")
    assert not covers(pattern, "a0")
    assert not covers(pattern, "a0.weight")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("stem.bn.running_mean",), {"stem.bn.running_mean"}),
        (("head.fc.weight", "head.fc.bias"), {"head.fc.weight", "head.fc.bias"}),
        (("head.*.weight",), {"head.bn.weight", "head.fc.weight"}),
        (("stem.*.running_*",), {"stem.bn.running_mean", "stem.bn.running_var"}),
        (("stem.conv",), {"stem.conv.weight", "stem.conv.bias"}),
    ],
)
def test_a_pattern_may_name_tensors(patterns: tuple[str, ...], expected: set[str]) -> None:
    assert tensors(deep(), *patterns) == expected


def test_brackets_are_letters_of_a_name() -> None:
    model = nn.ModuleDict({"block[0]": nn.BatchNorm1d(2), "block0": nn.BatchNorm1d(2)})
    assert layers(model, "block[0]") == {"block[0]"}
    with pytest.raises(GateError, match="matches nothing"):
        layers(model, "block[01]")


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("layer1", BN - {"layer1.0.bn1", "layer1.1.bn1"}),
        (["layer1", "layer10"], {"stem.bn", "head.bn"}),
        ({"*.bn"}, {"layer1.0.bn1", "layer1.1.bn1", "layer10.0.bn1"}),
        (("stem.bn",), BN - {"stem.bn"}),
    ],
)
def test_exclude_takes_a_name_or_several(exclude: object, left: set[str]) -> None:
    scope = Scope(exclude=option_names(exclude), bn_only=True)
    selection = select(deep(), scope)
    assert {watched.layer for watched in selection.tensors.values()} == left
    assert set(selection.bn_layers) == left


def test_excluding_a_tensor_leaves_its_layer_watched() -> None:
    scope = Scope(modules=("stem.bn",), exclude=("*.num_batches_tracked",), bn_only=True)
    selection = select(deep(), scope)
    left = {f"stem.bn.{name}" for name in STATE - {"num_batches_tracked"}}
    assert set(selection.tensors) == left
    assert set(selection.bn_layers) == {"stem.bn"}


NAMES = [*ModelNames.from_model(deep()).tensors]


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """A name of the model, or of one of its parents, with some letters made wild."""
    parts = draw(st.sampled_from(NAMES)).split(".")
    name = ".".join(parts[: draw(st.integers(1, len(parts)))])
    wild = draw(st.lists(st.sampled_from(["", "?", "*"]), min_size=len(name), max_size=len(name)))
    return "".join(w or letter for letter, w in zip(name, wild, strict=True))


@settings(deadline=None)
@given(patterns())
def test_what_a_pattern_watches_is_what_the_shell_would_match(pattern: str) -> None:
    expected = set()
    for name in NAMES:
        parts = name.split(".")
        above = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        if any(fnmatchcase(candidate, pattern) for candidate in above):
            expected.add(name)
    assert tensors(deep(), pattern) == expected


def test_a_pattern_of_many_stars_does_not_take_forever() -> None:
    began = time.perf_counter()
    assert not covers("*x" * 8 + "!", "x" * 42)
    assert time.perf_counter() - began < 0.5


@settings(deadline=None)
@given(st.sets(st.sampled_from(NAMES), min_size=1), st.sets(st.sampled_from(NAMES)))
def test_modules_and_exclude_together_are_a_difference(
    chosen: set[str], left_out: set[str]
) -> None:
    exclude = tuple(left_out & chosen)
    if chosen == set(exclude):
        with pytest.raises(GateError, match="leaves nothing to watch"):
            tensors(deep(), *chosen, exclude=exclude)
    else:
        assert tensors(deep(), *chosen, exclude=exclude) == chosen - left_out


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"parameters": False}, {"running_mean", "running_var", "num_batches_tracked"}),
        ({"buffers": False}, {"weight", "bias"}),
    ],
)
def test_parameters_and_buffers_can_be_left_out(options: dict[str, bool], kinds: set[str]) -> None:
    expected = {f"stem.bn.{name}" for name in kinds}
    assert tensors(deep(), "stem.bn", bn_only=True, **options) == expected


def test_buffers_that_are_not_saved_are_watched_too() -> None:
    model = nn.Module()
    model.register_buffer("cache", torch.zeros(2), persistent=False)
    assert tensors(model) == {"cache"}
