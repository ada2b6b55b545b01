"""Modules are found by name; without names, what was passed is called, wrapper and all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_bninvariants import GateError
from pytest_bninvariants.selection.submodules import submodules


def test_without_names_it_is_the_wrapper_that_was_passed_and_not_what_it_wraps() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    wrapped = torch.compile(model, backend="eager")
    assert submodules(wrapped, ()) == {"": wrapped}
    assert submodules(wrapped, ("0",)) == {"0": model[0]}
    assert submodules(model, ()) == {"": model}


def test_a_name_is_a_module_and_not_what_is_below_it() -> None:
    model = nn.ModuleDict({"a[0]": nn.Sequential(nn.Linear(2, 2)), "a0": nn.ReLU()})
    assert list(submodules(model, ("a[0]",))) == ["a[0]"]
    assert list(submodules(model, ("a*",))) == ["a[0]", "a[0].0", "a0"]
    with pytest.raises(GateError, match="'b' matches no module in the model"):
        submodules(model, ("a0", "b"))
