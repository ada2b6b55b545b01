"""The user's line that set a mode or a switch, or called a module."""

from __future__ import annotations

import sys
from types import FrameType, FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.instrumentation.call_sites import (
    ModeHistory,
    place_of_grad_call,
    place_of_mode_call,
    place_of_outermost_call,
    running_modules,
    runs_in_checkpoint_without_gradients,
)
from pytest_bninvariants.instrumentation.observer_api import Observer
from pytest_bninvariants.verdict import Place
from tests.instrumentation.recorder import recording


class Listener(Observer):
    """An observer that notes the places of what it hears."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.recorded: list[tuple[str, object]] = []

    def note(self, place: Place | None) -> None:
        assert place is not None
        assert place.file == __file__
        self.calls.append(place.call)

    def ignores(self, module: nn.Module) -> bool:
        return False

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        self.note(place_of_mode_call(frame, module, training))

    def saw_requires_grad_set(self, tensor: Tensor, requires: bool, frame: FrameType) -> None:
        self.note(place_of_grad_call(frame, tensor, requires))


def calls(step: Any) -> list[str]:
    listener: Any = Listener()
    with recording(listener):
        step()
    return list(dict.fromkeys(listener.calls))


class Odd(nn.Linear):
    """A layer whose methods have names and modes of their own."""

    def train(this, on: Any = True) -> Any:  # noqa: N805
        nn.Module.train(this, bool(on))
        return this


class Without(nn.Linear):
    def train(self) -> Any:  # type: ignore[override]
        self.training = True
        return self


def train(layer: nn.Module) -> None:
    layer.training = False


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (lambda net: net.train(), ["Sequential.train(True)"]),
        (lambda net: net.train(False), ["Sequential.train(False)"]),
        (lambda net: net.eval(), ["Sequential.eval()"]),
        (lambda net: setattr(net[0], "training", True), ["Odd.training = True"]),
        (lambda net: net[0].train("yes"), ["Odd.train(True)"]),
        (lambda net: net[1].train(), ["Without.train(True)"]),
        (lambda net: train(net[0]), ["Odd.training = False"]),
    ],
)
def test_the_outermost_call_that_set_a_mode_is_told(step: Any, told: list[str]) -> None:
    net = nn.Sequential(Odd(1, 1))
    net.append(Without(1, 1)) if told[0].startswith("Without") else None
    assert calls(lambda: step(net)) == told


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (lambda net: net.requires_grad_(False), ["Sequential.requires_grad_(False)"]),
        (lambda net: net[0].weight.requires_grad_(True), ["Parameter.requires_grad = True"]),
        (
            lambda net: setattr(net[0].bias, "requires_grad", False),
            ["Parameter.requires_grad = False"],
        ),
    ],
)
def test_the_outermost_call_that_set_a_switch_is_told(step: Any, told: list[str]) -> None:
    net = nn.Sequential(nn.Linear(1, 1))
    assert calls(lambda: step(net)) == told


class Looking(nn.Module):
    """A module that notes who runs it."""

    def forward(self, x: Tensor) -> Tensor:
        self.running = [*running_modules(sys._getframe())]
        self.place = place_of_outermost_call(sys._getframe())
        return x


def test_the_outermost_module_that_runs_is_told_with_the_line_that_called_it() -> None:
    inner = Looking()
    net = nn.Sequential(nn.ModuleList([inner])[0])
    with recording():
        net(torch.ones(1))
    assert inner.place is not None
    assert (inner.place.file, inner.place.call) == (__file__, "Sequential.forward()")
    assert list(dict.fromkeys(inner.running)) == [inner, net]
    place = place_of_outermost_call(sys._getframe())
    assert place is not None
    assert place.call == "a forward"


class Calling(nn.Module):
    """A module with a method that runs another one; the module itself does not run."""

    def run(self, other: nn.Module, x: Tensor) -> None:
        other.forward(x)


def test_only_modules_whose_forward_runs_are_running() -> None:
    looking = Looking()
    Calling().run(looking, torch.ones(1))
    assert looking.running == [looking]
    Calling().run(nn.Sequential(looking), torch.ones(1))
    assert [type(each) for each in looking.running][-1] is nn.Sequential
    assert not any(isinstance(each, Calling) for each in looking.running)


class Context:
    def __init__(self, *needs: bool) -> None:
        self.needs_input_grad = needs


def in_function(name: str, module: str, **variables: Any) -> bool:
    """Ask from a function of this name and module, with these variables."""
    source = f"def {name}({', '.join(variables)}):\n    return ask(sys._getframe())\n"
    space: dict[str, Any] = {"__name__": module, "sys": sys}
    exec(compile(source, "user.py", "exec"), space)
    space["ask"] = runs_in_checkpoint_without_gradients
    function: FunctionType = space[name]
    return bool(function(**variables))


@pytest.mark.parametrize(
    ("name", "module", "variables", "told"),
    [
        ("forward", "torch.utils.checkpoint", {"ctx": Context(False), "run_function": 1}, True),
        ("forward", "deepspeed.checkpointing", {"ctx": Context(False), "run_function": 1}, True),
        ("forward", "torch.utils.checkpoint", {"ctx": Context(True), "run_function": 1}, False),
        (
            "forward",
            "torch.utils.checkpoint",
            {"ctx": Context(False, True), "run_function": 1},
            False,
        ),
        ("forward", "torch.utils.checkpoint", {"ctx": object(), "run_function": 1}, False),
        ("forward", "torch.utils.checkpoint", {"ctx": None, "run_function": 1}, False),
        ("forward", "torch.utils.checkpoint", {"ctx": Context(False)}, False),
        ("forward", "user.model", {"ctx": Context(False), "run_function": 1}, False),
        ("backward", "torch.utils.checkpoint", {"ctx": Context(False), "run_function": 1}, False),
    ],
)
def test_a_reentrant_checkpoint_without_gradients_is_told_by_its_frame(
    name: str, module: str, variables: dict[str, Any], told: bool
) -> None:
    assert in_function(name, module, **variables) == told


def test_the_last_flip_to_training_mode_is_kept_and_else_the_first_line() -> None:
    layer = nn.BatchNorm1d(1)

    def put(history: ModeHistory, *, training: bool, restores: bool = False) -> int:
        layer.training = training
        history.saw_training_set(layer, sys._getframe(), restores=restores)
        return sys._getframe().f_lineno - 1

    kept = ModeHistory()
    line = put(kept, training=True)
    assert not kept.flipped
    assert kept.put_in_training is not None
    assert kept.put_in_training.line == line
    first = kept.put_in_training
    put(kept, training=True)
    assert kept.put_in_training is first
    put(kept, training=False, restores=True)
    assert kept.flipped
    assert kept.put_in_training is first
    put(kept, training=False)
    assert kept.put_in_training is not first
    restored = ModeHistory()
    put(restored, training=True, restores=True)
    assert restored.put_in_training is None
