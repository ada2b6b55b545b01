from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import pytest

from pytest_bninvariants.torch_internals import patches
from pytest_bninvariants.torch_internals.patches import CodeSwap, Patches, Switch, caller


class Base:
    """A class whose methods pass for torch's."""

    def __init__(self) -> None:
        self.value = 0

    def set(self, value: int, *, twice: bool = False) -> int:
        self.value = value * (1 + twice)
        return self.value

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)

    def fail(self) -> None:
        raise ValueError("mine")


class Child(Base):
    pass


@pytest.fixture(autouse=True)
def base_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in vars(Base).values():
        if isinstance(method, FunctionType):
            monkeypatch.setattr(method, "__module__", "torch.nn")


@contextmanager
def swapped(name: str) -> Iterator[list[Any]]:
    heard: list[Any] = []

    def make(original: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            heard.append((args, kwargs, caller()))
            return original(self, *args, **kwargs)

        return wrapper

    swap = Patches(CodeSwap(Base, name, make))
    swap.install()
    try:
        yield heard
    finally:
        swap.remove()


def test_calls_are_heard_with_their_arguments_and_pass_on_what_comes_of_them() -> None:
    child = Child()
    with swapped("set") as heard:
        assert child.set(3, twice=True) == 6
    assert child.value == 6
    assert heard[0][:2] == ((3,), {"twice": True})


def test_a_method_that_asks_for_its_base_is_heard_too() -> None:
    child = Child()
    with swapped("__setattr__") as heard:
        child.value = 5
    assert child.value == 5
    assert heard[0][0] == ("value", 5)


def test_the_function_stays_the_same_and_has_its_own_code_back() -> None:
    function, code = Base.set, Base.set.__code__
    with swapped("set") as heard:
        assert Base.set is function
        assert Base.set.__code__ is not code
        assert Base.set.__name__ == "set"
    assert Base.set.__code__ is code
    Child().set(1)
    assert heard == []


def test_a_wrapper_is_told_who_called() -> None:
    with swapped("set") as heard:
        Child().set(1)
    assert heard[0][2].f_code.co_name == "test_a_wrapper_is_told_who_called"


def test_an_error_passes_and_only_our_files_come_between() -> None:
    with swapped("fail"), pytest.raises(ValueError, match="mine") as caught:
        Child().fail()
    files = {frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)}
    assert files == {__file__, patches.__file__}


def test_on_and_off_again_hears_again() -> None:
    heard = []

    def make(original: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any) -> Any:
            assert switch.on
            heard.append(args)
            return original(self, *args)

        return wrapper

    swap = CodeSwap(Base, "set", make)
    for value in range(3):
        swap.install()
        Child().set(value)
        swap.remove()
        Child().set(9)
    assert heard == [(0,), (1,), (2,)]


def test_somebodys_own_function_in_the_methods_place_is_wrapped_as_a_patch_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Base.set

    def mine(self: Base, value: int) -> int:
        return real(self, value + 1)

    monkeypatch.setattr(Base, "set", mine)
    code = mine.__code__
    with swapped("set") as heard:
        assert Base.set is not mine
        assert Child().set(1) == 2
        assert mine.__code__ is code
    assert Base.set is mine
    assert heard[0][0] == (1,)


def test_somebodys_wrapper_that_comes_and_goes_in_between_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Base.set
    with swapped("set") as heard:
        with monkeypatch.context() as patch:
            patch.setattr(Base, "set", lambda self, value: real(self, value + 1))
            assert Child().set(1) == 2
        assert Child().set(1) == 1
    assert [args for args, _, _ in heard] == [(2,), (1,)]
    assert Base.set is real
