"""The line that put a layer in training mode is the user's own."""

from __future__ import annotations

import importlib.util
import linecache
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, frames, frozen_bn
from pytest_bninvariants.frames import is_user_file
from pytest_bninvariants.verdict import Place


def place_of(model: nn.Module, step: Callable[[], object], run: Callable[..., object]) -> Place:
    def whole() -> None:
        step()
        run(torch.randn(4, 2, 5))

    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        whole()
    (cause,) = caught.value.verdict.causes
    assert cause.place is not None
    return cause.place


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.BatchNorm1d(2))

    def forward(self, batch: Tensor) -> Tensor:
        return self.inner(batch)


class OwnTrain(Outer):
    def train(self, mode: bool = True) -> OwnTrain:
        super().train(mode)
        for child in self.children():
            child.train(mode)
        return self


class OwnSetattr(Outer):
    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)


class OwnBn(nn.BatchNorm1d):
    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)


def with_own_bn() -> Outer:
    model = Outer()
    model.inner[0] = OwnBn(2)
    return model


def set_the_flag(model: Any) -> None:
    model.inner[0].training = True


@pytest.mark.parametrize(
    ("build", "call", "told"),
    [
        (Outer, lambda m: m.train(), "Outer.train(True)"),
        (Outer, lambda m: m.train(True), "Outer.train(True)"),
        (Outer, lambda m: m.inner.train(), "Sequential.train(True)"),
        (Outer, lambda m: m.inner[0].train(), "BatchNorm1d.train(True)"),
        (Outer, lambda m: m.eval().train(), "Outer.train(True)"),
        (Outer, set_the_flag, "BatchNorm1d.training = True"),
        (OwnTrain, lambda m: m.train(), "OwnTrain.train(True)"),
        (OwnSetattr, lambda m: m.train(), "OwnSetattr.train(True)"),
        (with_own_bn, lambda m: m.train(), "Outer.train(True)"),
        (with_own_bn, lambda m: m.inner[0].train(), "OwnBn.train(True)"),
        (with_own_bn, set_the_flag, "OwnBn.training = True"),
    ],
)
def test_the_outermost_call_is_named_where_the_user_made_it(
    build: Callable[[], Outer], call: Callable[[Outer], object], told: str
) -> None:
    model = build().eval()
    place = place_of(model, lambda: call(model), model)
    assert place.call == told
    assert place.file == __file__
    assert place.function == call.__name__
    assert place.line in (call.__code__.co_firstlineno, call.__code__.co_firstlineno + 1)
    assert place.tool is None


def train_one_epoch(model: nn.Module) -> None:
    model.train()  # the line


def test_the_function_is_the_one_that_made_the_call() -> None:
    model = Outer().eval()
    place = place_of(model, lambda: train_one_epoch(model), model)
    assert place.function == "train_one_epoch"
    assert "# the line" in linecache.getline(place.file, place.line)


def train(model: nn.Module) -> None:
    model.train()  # in a function called train


def test_a_function_called_train_is_not_taken_for_the_method() -> None:
    model = Outer().eval()
    place = place_of(model, lambda: train(model), model)
    assert (place.function, place.call) == ("train", "Outer.train(True)")
    assert "# in a function called train" in linecache.getline(place.file, place.line)


class Trainer:
    """Have a `self` that is no module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def train(self) -> None:
        self.model.train()  # in a trainer


def test_a_trainers_train_is_not_taken_for_the_models() -> None:
    model = Outer().eval()
    place = place_of(model, Trainer(model).train, model)
    assert (place.function, place.call) == ("train", "Outer.train(True)")
    assert "# in a trainer" in linecache.getline(place.file, place.line)


def test_layers_put_in_training_mode_at_several_places_are_told_apart() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).eval()

    def step() -> None:
        model[0].train()
        train_one_epoch(model[1])
        model(torch.randn(4, 2, 5))

    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(model):
        step()
    first, second = caught.value.verdict.causes
    assert (first.layers, second.layers) == (("0",), ("1",))
    assert second.place is not None
    assert second.place.function == "train_one_epoch"


TOOL = """
def fit(model):
    advance(model)

def advance(model):
    model.train()

def call(function):
    function()

def in_thread(model):
    import threading
    thread = threading.Thread(target=model.train)
    thread.start()
    thread.join()
"""


@pytest.fixture(params=["site-packages", "dist-packages"])
def tool(tmp_path: Path, request: pytest.FixtureRequest) -> ModuleType:
    """A library's module, in a folder where libraries are installed."""
    file = tmp_path / request.param / "lightning" / "loops.py"
    file.parent.mkdir(parents=True)
    file.write_text(TOOL)
    spec = importlib.util.spec_from_file_location("lightning.loops", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tool_in_between_is_named_beside_the_users_line(tool: Any) -> None:
    model = Outer().eval()
    place = place_of(model, lambda: tool.fit(model), model)  # the user's line
    assert place.tool == "lightning.loops.advance"
    assert place.call == "Outer.train(True)"
    assert place.file == __file__
    assert "# the user's line" in linecache.getline(place.file, place.line)


def test_a_tool_that_only_calls_back_is_not_named(tool: Any) -> None:
    model = Outer().eval()
    place = place_of(model, lambda: tool.call(lambda: train_one_epoch(model)), model)
    assert place.tool is None
    assert place.function == "train_one_epoch"


def test_without_a_line_of_the_users_the_nearest_is_named(tool: Any) -> None:
    model = Outer().eval()

    def in_thread() -> None:
        thread = threading.Thread(target=tool.advance, args=(model,))
        thread.start()
        thread.join()

    place = place_of(model, in_thread, model)
    assert place.file == tool.__file__
    assert place.function == "advance"


def test_a_compiled_models_train_is_placed_where_the_user_called_it() -> None:
    model = torch.compile(Outer(), backend="eager")
    model.eval()
    place = place_of(model, lambda: train_one_epoch(model), model)  # type: ignore[arg-type]
    assert place.function == "train_one_epoch"
    assert place.file == __file__


def test_a_data_parallels_train_is_placed_where_the_user_called_it() -> None:
    model = nn.DataParallel(Outer()).eval()
    place = place_of(model, lambda: train_one_epoch(model), model)
    assert (place.function, place.call) == ("train_one_epoch", "DataParallel.train(True)")


HERE = Path(frames.PACKAGE)


@pytest.mark.parametrize(
    ("file", "users"),
    [
        (__file__, True),
        ("/home/me/project/train.py", True),
        ("train.py", True),
        ("/home/me/site-packages-of-mine/train.py", True),
        ("/home/me/my_site-packages/train.py", True),
        ("<string>", False),
        ("<frozen runpy>", False),
        ("/home/me/.venv/lib/python3.11/site-packages/lightning/loop.py", False),
        ("/usr/lib/python3/dist-packages/torch/nn/module.py", False),
        (torch.__file__, False),
        (threading.__file__, False),
        (pytest.__file__, False),
        (str(HERE / "invariants" / "guard.py"), False),
        (f"{HERE}_of_mine/train.py", True),
        (f"{HERE}.py", True),
        (f"{sysconfig.get_path('stdlib')}-of-mine/train.py", True),
    ],
)
def test_a_file_is_the_users_or_not(file: str, users: bool) -> None:
    assert is_user_file(file) == users
