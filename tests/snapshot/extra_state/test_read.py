"""State beside parameters and buffers is frozen state: extra state, and what a weight carries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, GateError, frozen, frozen_bn


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.state: Any = {"scale": 1.0, "history": torch.zeros(2), "nested": [1, "text"]}

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x) * self.state["scale"]
        return output

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Quantised(nn.Parameter):
    """A weight with a scale beside it, and an object that holds more, as bitsandbytes keeps it."""

    absmax: Any
    quant_state: Any

    def __new__(cls, data: Tensor) -> Quantised:
        weight = torch.Tensor._make_subclass(cls, data, False)
        weight.absmax = torch.ones(4)
        weight.quant_state = SimpleNamespace(code=torch.zeros(2), blocksize=64, offset=0.5)
        return weight


def quantised() -> Any:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight = Quantised(torch.ones(4, 3))
    return model


def changed(model: nn.Module, change: Any, *names: str, **options: Any) -> list[tuple[str, str]]:
    """Return what a guard says that changed, as names and texts."""
    guard = frozen(model, *names, **options)
    try:
        with guard:
            model(torch.ones(2, 3))
            change(model)
    except FrozenStateChanged as broken:
        verdict = broken.verdict
    else:
        return []
    assert [cause.name for cause in verdict.causes] == ["in-place"]
    assert "set during the step" in verdict.causes[0].why
    return [(each.name, each.text) for each in verdict.changes]


def set_scale(model: Any) -> None:
    model.state["scale"] = 2.0


def test_a_value_of_the_extra_state_is_watched() -> None:
    assert changed(Scaled(), set_scale) == [("_extra_state.scale", "1.0 -> 2.0")]
    (name, text), *_ = changed(Scaled(), lambda model: model.state["history"].add_(1))
    assert (name, text.startswith("2 of 2 values")) == ("_extra_state.history", True)
    inner = nn.Sequential(Scaled())
    assert changed(inner, lambda model: set_scale(model[0]))[0][0] == "0._extra_state.scale"


def test_equal_extra_state_is_no_change() -> None:
    def rebuild(model: Any) -> None:
        model.state = {"scale": 1.0, "history": torch.zeros(2), "nested": [1, "text"]}

    assert changed(Scaled(), rebuild) == []


def test_extra_state_belongs_to_what_is_named() -> None:
    assert changed(Scaled(), set_scale, "layer") == []
    assert changed(Scaled(), set_scale, buffers=False) == []
    assert changed(Scaled(), set_scale, exclude="_extra_state") == []
    model = nn.Sequential(Scaled(), nn.Linear(3, 3))
    assert changed(model, lambda m: set_scale(m[0]), exclude="*._extra_state") == []
    assert changed(model, lambda m: set_scale(m[0]), "1") == []
    bn = nn.Sequential(Scaled(), nn.BatchNorm1d(3)).eval()
    with frozen_bn(bn):
        bn(torch.ones(2, 3))
        set_scale(bn[0])


def test_extra_state_that_cannot_be_read_is_a_gate_error() -> None:
    class Broken(Scaled):
        def get_extra_state(self) -> Any:
            raise ValueError("not yet")

    with pytest.raises(GateError, match="_extra_state'"), frozen(Broken()):
        pass


def test_what_a_quantised_weight_carries_is_watched() -> None:
    def offset(model: Any) -> None:
        model[0].weight.quant_state.offset = 1.0

    assert changed(quantised(), lambda m: m[0].weight.absmax.mul_(2))[0][0] == "0.weight.absmax"
    assert changed(quantised(), offset) == [("0.weight.quant_state.offset", "0.5 -> 1.0")]
    rebound = changed(quantised(), lambda m: setattr(m[0].weight, "absmax", torch.zeros(4)))
    assert [name for name, _ in rebound] == ["0.weight.absmax"]


def test_a_quantised_weight_may_keep_or_hand_over_what_it_carries() -> None:
    def flags(model: Any) -> None:
        model[0].weight.absmax = torch.ones(4)
        model[0].weight.is_packed = True

    def hand_over(model: Any) -> None:
        model[0].absmax, model[0].weight.absmax = model[0].weight.absmax, None

    assert changed(quantised(), flags) == []
    assert changed(quantised(), hand_over) == []
    assert changed(quantised(), lambda m: m[0].weight.absmax.mul_(2), "1") == []
