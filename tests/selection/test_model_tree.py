"""Two looks at a model agree if the same objects of the same types hold the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants.selection.model_tree import ModelTree


class Own(nn.BatchNorm1d):
    """A type that a layer can be turned into in place, as parametrizations do."""


def model() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2)))


CHANGES: dict[str, Callable[[Any], object]] = {
    "a type in place": lambda m: setattr(m[0], "__class__", Own),
    "an equal tensor": lambda m: setattr(m[0], "running_mean", torch.zeros(2)),
    "an equal module": lambda m: setattr(m, "0", nn.BatchNorm1d(2)),
    "a tensor that is gone": lambda m: setattr(m[0], "bias", None),
    "a module that is gone": lambda m: setattr(m[1], "0", None),
    "a new buffer": lambda m: m[0].register_buffer("more", torch.ones(1)),
    "a new module": lambda m: m[1].append(nn.ReLU()),
    "another name": lambda m: m._modules.__setitem__("2", m._modules.pop("1")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_holds_a_name_or_is_of_a_type_is_told_apart(change: Callable[[Any], object]) -> None:
    changed = model()
    before = ModelTree(changed)
    assert ModelTree(changed).matches(before)
    change(changed)
    assert not ModelTree(changed).matches(before)


def test_values_modes_and_gradients_do_not_matter() -> None:
    changed = model()
    before = ModelTree(changed)
    changed.eval().requires_grad_(False)
    changed[0].running_mean.add_(1)
    assert ModelTree(changed).matches(before)
