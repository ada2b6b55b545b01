"""What in_sync cannot judge is an error that says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from pytest_bninvariants import GateError, in_sync


def alike(model: nn.Module) -> nn.Module:
    other = nn.Sequential()
    for name, module in model.named_children():
        other.add_module(name, module)
    return other


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda m: in_sync(m, m), "got the same one twice"),
        (lambda m: in_sync(m, alike(m)), "both models hold the very same tensors"),
        (lambda m: in_sync(m[0], m[0].to("cpu")), "same one twice"),
        (lambda m: in_sync(m[0], copy.deepcopy(m[0])), "parameters are compared with parameters="),
        (lambda m: in_sync(m, m[1]), "the models have no name in common"),
        (lambda m: in_sync(m, copy.deepcopy(m), "bn"), "'bn' matches nothing in the model"),
        (lambda m: in_sync(m.state_dict(), m), "takes the model, a torch.nn.Module, first; got"),
        (
            lambda m: in_sync(m, "1"),
            r"takes another model, a torch.nn.Module, second; got '1' \(str",
        ),
        (lambda m: in_sync(m), "takes a second model; without one it compares the ranks"),
        (lambda m: in_sync(m, copy.deepcopy(m), decay=2), "decay= takes a number from 0 to 1"),
        (lambda m: in_sync(m, copy.deepcopy(m), decay=True), r"from 0 to 1; got True \(bool\)"),
        (lambda m: in_sync(m, copy.deepcopy(m), buffers="copied"), "buffers= needs decay="),
        (lambda m: in_sync(m, copy.deepcopy(m), decay=0.5, buffers="x"), 'takes "copied" or'),
        (lambda m: in_sync(m, decay=0.5), "takes the model and its average"),
    ],
)
def test_what_cannot_be_judged_is_named(
    model: nn.Sequential, judge: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(GateError, match=message):
        judge(model)


def test_a_step_that_moves_nothing_cannot_tell_an_average(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)
    with (
        pytest.raises(GateError, match="nothing moved far enough"),
        in_sync(model, average, decay=0.9),
    ):
        pass


def test_a_name_that_only_one_has_cannot_be_an_average(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)
    average.append(nn.Linear(1, 1))
    with (
        pytest.raises(GateError, match=r"only one of the two models has '3\.bias'"),
        in_sync(model, average, decay=0.9),
    ):
        pass
