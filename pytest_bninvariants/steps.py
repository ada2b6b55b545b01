"""Put the guards that a test's markers ask for around its call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import pytest

from pytest_bninvariants.errors import FrozenStateChanged, GateError
from pytest_bninvariants.failures import GATE_ERROR, raise_at
from pytest_bninvariants.invariants import reruns
from pytest_bninvariants.invariants.guards import Guard, conclude
from pytest_bninvariants.invariants.state import ModelState
from pytest_bninvariants.markers import Request
from pytest_bninvariants.models import Value, find


class Step:
    """Guard one run of a test's function; a context manager.

    Args:
        item: the test.
        marks: its markers that ask for a guard.
        function: the function that runs, whose `def` line a failure shows.
        arguments: what it is called with besides fixtures, as `@given` does.
        put_back: whether to restore the models after a failure, so that hypothesis can shrink.
    """

    def __init__(
        self,
        item: pytest.Item,
        marks: list[pytest.Mark],
        function: Callable[..., Any],
        arguments: Mapping[str, Any] | None = None,
        *,
        put_back: bool = False,
    ) -> None:
        self._item = item
        self._marks = marks
        self._function = function
        self._arguments = arguments or {}
        self._put_back = put_back
        self._guards: list[Guard] = []
        self._states: list[ModelState] = []

    def __enter__(self) -> None:
        __tracebackhide__ = True
        try:
            self._start()
        except BaseException as error:
            for guard in self._guards:
                guard.stop()
            if isinstance(error, GateError):
                self._fail(error)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        try:
            conclude(self._guards, error)
        except (FrozenStateChanged, GateError) as failure:
            self._restore()
            self._fail(failure)
        if error is not None:
            self._restore()

    def _start(self) -> None:
        values = values_of(self._item, self._arguments)
        for mark in self._marks:
            request = Request.of(mark)
            self._guards.append(request.guard(*find(values, request.model)))
        if self._put_back:
            models = {id(guard.model): guard.model for guard in self._guards}
            self._states = [ModelState(model) for model in models.values()]
        for guard in self._guards:
            guard.start()

    def _restore(self) -> None:
        for state in self._states:
            state.restore()

    def _fail(self, failure: FrozenStateChanged | GateError) -> None:
        __tracebackhide__ = True
        if isinstance(failure, GateError):
            self._item.stash[GATE_ERROR] = failure
        raise_at(
            self._function, failure, {**getattr(self._item, "funcargs", {}), **self._arguments}
        )


def values_of(item: pytest.Item, arguments: Mapping[str, Any]) -> dict[str, Value]:
    """Return what a test has at hand: its instance's attributes, its fixtures, its arguments."""
    values: dict[str, Value] = {}
    instance = getattr(item, "instance", None)
    if instance is not None:
        attributes: dict[str, Any] = {}
        for owner in (*reversed(type(instance).__mro__), instance):
            attributes.update(getattr(owner, "__dict__", {}))
        values |= {name: Value(f"self.{name}", value) for name, value in attributes.items()}
    fixtures = getattr(item, "funcargs", None) or {}
    values |= {name: Value(f"fixture {name!r}", value) for name, value in fixtures.items()}
    drawn = {name: value for name, value in arguments.items() if name not in fixtures}
    return values | {name: Value(f"argument {name!r}", value) for name, value in drawn.items()}


def around_call(item: pytest.Item, marks: list[pytest.Mark]) -> Generator[None, Any, Any]:
    """Run a test's call with its guards around what is the step.

    That is the call; for a TestCase, whose setUp runs inside the call, the method; under `@given`
    each example.
    """
    __tracebackhide__ = True
    item.stash[GATE_ERROR] = None
    function: Any = getattr(item, "obj", None) or item.runtest
    handle: Any = getattr(function, "hypothesis", None)
    if hasattr(handle, "inner_test"):
        inner = handle.inner_test
        step = _stepping(item, marks, inner, put_back=True)
        with reruns.remembering(None), _swapped(handle, "inner_test", step):
            return (yield)
    if type(item).__name__ == "TestCaseFunction":
        step = _stepping(item, marks, function)
        if inspect.iscoroutinefunction(function):
            with _swapped(item.instance, item.name, step):  # type: ignore[attr-defined]
                return (yield)
        with _swapped(item, "obj", step):
            return (yield)
    with Step(item, marks, function):
        return (yield)


def _stepping(
    item: pytest.Item,
    marks: list[pytest.Mark],
    function: Callable[..., Any],
    *,
    put_back: bool = False,
) -> Callable[..., Any]:
    """Return a function that runs another, as a step of its own each time."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with Step(item, marks, function, kwargs, put_back=put_back):
            return function(*args, **kwargs)

    @functools.wraps(function)
    async def run_async(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with Step(item, marks, function, kwargs, put_back=put_back):
            return await function(*args, **kwargs)

    return run_async if inspect.iscoroutinefunction(function) else run


@contextmanager
def _swapped(owner: Any, name: str, value: Any) -> Generator[None]:
    was_own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if was_own or name == "obj":
            setattr(owner, name, before)
        else:
            delattr(owner, name)
