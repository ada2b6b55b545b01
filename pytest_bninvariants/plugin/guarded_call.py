"""Put the guards that a test's markers request around its call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import pytest

from pytest_bninvariants.errors import GateError, InvariantBroken
from pytest_bninvariants.invariants.conclude import conclude
from pytest_bninvariants.invariants.frozen import earlier_runs
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.plugin.marker_guards import MarkerRequest, make_guard
from pytest_bninvariants.plugin.markers import as_written
from pytest_bninvariants.plugin.model_lookup import FoundModel, collect_values
from pytest_bninvariants.plugin.outcomes.raise_at_test import function_of, line_of, raise_at
from pytest_bninvariants.snapshot.model_state.restore import ModelState


class GuardedStep:
    """Guard one run of a test's function; a context manager.

    Args:
        item: the test.
        marks: its markers that request a guard.
        function: the function that runs; a failure shows its `def` line.
        arguments: its arguments other than fixtures, such as those that `@given` draws.
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
        self._found: list[tuple[pytest.Mark, FoundModel]] = []
        self._states: list[ModelState] = []

    def __enter__(self) -> None:
        __tracebackhide__ = True
        try:
            self._start()
        except BaseException as error:
            for guard in reversed(self._guards):
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
            conclude(self._guards, error, unjudged=() if error else self._exchanged_models())
        except (GateError, InvariantBroken) as failure:
            self._restore()
            self._fail(failure)
        if error is not None:
            self._restore()

    def _start(self) -> None:
        values = collect_values(self._item, self._arguments)
        for mark in self._marks:
            with naming(mark):
                request = MarkerRequest.from_mark(mark)
                guard, models = make_guard(request, values)
            self._found += [(mark, model) for model in models]
            for part in guard.parts:
                part.made_at = line_of(self._function)
            self._guards.append(guard)
        if self._put_back:
            all_models = {id(model): model for guard in self._guards for model in guard.models}
            self._states = [ModelState(model) for model in all_models.values()]
        for mark, guard in zip(self._marks, self._guards, strict=True):
            with naming(mark):
                guard.start()

    def _exchanged_models(self) -> list[str]:
        """Return what is wrong where a model's path leads to another model than at the start."""
        values = collect_values(self._item, self._arguments)
        told = [(mark, model.led_elsewhere(values)) for mark, model in self._found]
        return [_named(text, mark) for mark, text in told if text]

    def _restore(self) -> None:
        for state in self._states:
            state.restore()

    def _fail(self, failure: InvariantBroken | GateError) -> None:
        __tracebackhide__ = True
        instance = getattr(self._item, "instance", None)
        values = {} if instance is None else {"self": instance}
        values |= getattr(self._item, "funcargs", None) or {}
        raise_at(self._function, failure, values | dict(self._arguments))


@contextmanager
def naming(mark: pytest.Mark) -> Generator[None]:
    """Name the marker in gate errors, since it may be on a class or a module."""
    try:
        yield
    except GateError as error:
        raise GateError(_named(error, mark)) from None


def _named(problem: object, mark: pytest.Mark) -> str:
    return f"{problem} (asked for by {as_written(mark)})"


def around_call(item: pytest.Item, marks: list[pytest.Mark]) -> Generator[None, Any, Any]:
    """Run a test's call with its guards around the step.

    The step is the whole call; in a TestCase, whose setUp runs inside the call, it is the method;
    under `@given` it is each example.
    """
    __tracebackhide__ = True
    function: Any = function_of(item)
    handle: Any = getattr(function, "hypothesis", None)
    if hasattr(handle, "inner_test"):
        inner = handle.inner_test
        step = _guard_calls(item, marks, inner, put_back=True)
        with earlier_runs.remembering(None), _replaced_attribute(handle, "inner_test", step):
            return (yield)
    if type(item).__name__ == "TestCaseFunction":
        # an async method is not wrapped itself, or asyncio's debug log would show our coroutine
        isolated = inspect.iscoroutinefunction(function)
        owner, name = (item.instance, "_callTestMethod") if isolated else (item, "obj")  # type: ignore[attr-defined]
        with _replaced_attribute(
            owner, name, _guard_calls(item, marks, getattr(owner, name), test=function)
        ):
            return (yield)
    with GuardedStep(item, marks, function):
        return (yield)


def _guard_calls(
    item: pytest.Item,
    marks: list[pytest.Mark],
    function: Callable[..., Any],
    *,
    test: Callable[..., Any] | None = None,
    put_back: bool = False,
) -> Callable[..., Any]:
    """Return a function that calls another, with guards around each call.

    Args:
        item: the test.
        marks: its markers that request a guard.
        function: the function to call.
        test: the test's function, if it is another one.
        put_back: whether to restore the models after a failure.
    """
    test = test or function

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with GuardedStep(item, marks, test, kwargs, put_back=put_back):
            return function(*args, **kwargs)

    @functools.wraps(function)
    async def run_async(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with GuardedStep(item, marks, test, kwargs, put_back=put_back):
            return await function(*args, **kwargs)

    return run_async if inspect.iscoroutinefunction(function) else run


@contextmanager
def _replaced_attribute(owner: Any, name: str, value: Any) -> Generator[None]:
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
