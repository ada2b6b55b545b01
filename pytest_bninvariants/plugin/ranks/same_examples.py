"""Let hypothesis draw the same examples on all ranks, and end each example on all alike.

Hypothesis decides by the outcome of each example which it draws next. So the ranks draw from one
seed, and tell each other how each example ended: where one fails, all fail, and shrink together.
"""

from __future__ import annotations

import functools
import inspect
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_bninvariants.errors import GateError

if TYPE_CHECKING:
    from pytest_bninvariants.ranks.group import Membership

_PASSED, _REJECTED, _SKIPPED = "passed", "rejected", "skipped"
_ENDINGS = ("StopTest", "UnsatisfiedAssumption")  # exceptions by which hypothesis ends an example
_SETTINGS = "_hypothesis_internal_use_settings"
_SEED = "_hypothesis_internal_use_seed"


class AnotherRankFailed(AssertionError):
    """Raised in an example that passes on this rank and fails on another."""


def draws_examples(item: pytest.Item) -> bool:
    """Tell whether a test is one of hypothesis'."""
    return hasattr(getattr(getattr(item, "obj", None), "hypothesis", None), "inner_test")


@contextmanager
def same_examples(item: Any, membership: Membership, seconds: float) -> Iterator[ExampleExchange]:
    """Draw the same examples as the other ranks for a while.

    Args:
        item: the test.
        membership: this rank's part in the process group.
        seconds: how long a rank waits for the others to end an example.
    """
    function, handle = item.function, item.obj.hypothesis
    kept = {name: getattr(function, name, None) for name in (_SETTINGS, _SEED)}
    inner = handle.inner_test
    exchange = ExampleExchange(membership, seconds, _agree_on_seed(membership, kept[_SEED]))
    _draw_from(function, exchange.seed)
    handle.inner_test = exchange.around(inner)
    try:
        yield exchange
    finally:
        handle.inner_test = inner
        exchange.end()
        for name, value in kept.items():
            setattr(function, name, value)


def _agree_on_seed(membership: Membership, own: Any) -> Any:
    if own is not None:  # the test has @seed
        return own
    if membership.rank == 0:
        membership.store.set("seed", str(secrets.randbits(64)))
    return int(membership.store.get("seed"))


def _draw_from(function: Any, seed: Any) -> None:
    """Leave out what may differ between ranks: the database of examples, and clocks."""
    from hypothesis import HealthCheck, seed as with_seed, settings

    with_seed(seed)(function)
    own: Any = getattr(function, _SETTINGS, None) or settings.default
    quiet = [*own.suppress_health_check, HealthCheck.too_slow]
    alike = settings(own, database=None, deadline=None, suppress_health_check=quiet)
    setattr(function, _SETTINGS, alike)


class ExampleExchange:
    """Tell the other ranks how each example ended, and end it as they do.

    Args:
        membership: this rank's part in the process group.
        seconds: how long to wait for the others.
        seed: what all draw from.
    """

    def __init__(self, membership: Membership, seconds: float, seed: Any) -> None:
        self.seed = seed
        self._rank, self._size = membership.rank, membership.size
        self._store = membership.store
        self._seconds = seconds
        self._examples = 0
        self.refusal: GateError | None = None
        """Why the ranks cannot draw the same examples, if they cannot."""

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs an example and ends as all ranks do."""

        @functools.wraps(inner)
        def run(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            try:
                result = inner(*args, **kwargs)
            except BaseException as error:
                self._end_with(error)
                raise
            self._end_passed()
            return result

        @functools.wraps(inner)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            try:
                result = await inner(*args, **kwargs)
            except BaseException as error:
                self._end_with(error)
                raise
            self._end_passed()
            return result

        return run_async if inspect.iscoroutinefunction(inner) else run

    def end(self) -> None:
        """Tell the others that this rank draws no more examples."""
        if not self._store.check([f"last/{self._rank}"]):
            self._store.set(f"last/{self._rank}", str(self._examples))

    def _end_passed(self) -> None:
        __tracebackhide__ = True
        failures, rejected = self._exchange(_PASSED)
        if failures:
            raise _failure_type(failures)(_sentence(failures))
        if rejected:
            _reject()

    def _end_with(self, error: BaseException) -> None:
        __tracebackhide__ = True
        if isinstance(error, pytest.skip.Exception):
            self._store.set(f"last/{self._rank}", _SKIPPED)
        if isinstance(error, pytest.skip.Exception | KeyboardInterrupt | SystemExit):
            return  # hypothesis ends with it
        outcome = _REJECTED if type(error).__name__ in _ENDINGS else _origin(error)
        failures, _ = self._exchange(outcome)
        if failures and outcome != _REJECTED:
            _mark(error, _failure_type(failures))
        elif failures and type(error).__name__ == "UnsatisfiedAssumption":
            raise _failure_type(failures)(_sentence(failures)) from None

    def _exchange(self, outcome: str) -> tuple[tuple[tuple[int, str], ...], bool]:
        """Return the failures of this example by rank, and whether a rank rejected it."""
        number, self._examples = self._examples, self._examples + 1
        self._store.set(f"example/{number}/{self._rank}", outcome)
        outcomes = {rank: self._outcome_of(rank, number) for rank in range(self._size)}
        ended = (_PASSED, _REJECTED)
        failures = [(rank, each) for rank, each in outcomes.items() if each not in ended]
        return tuple(failures), _REJECTED in outcomes.values()

    def _outcome_of(self, rank: int, number: int) -> str:
        from pytest_bninvariants.ranks.group import wait_for_keys

        key, last = f"example/{number}/{rank}", f"last/{rank}"
        if not self._store.check([key]):
            wait_for_keys(self._store, [key], self._seconds, unless=last)
        if self._store.check([key]):
            return self._store.get(key).decode()
        if self._store.check([last]):
            drew = self._store.get(last).decode()
            if drew == _SKIPPED:
                raise _failure_type(((rank, drew),))(f"rank {rank} skipped the test")
            self.refusal = GateError(
                f"rank {rank} drew {drew} examples, and rank {self._rank} draws more: what a "
                "strategy, assume() or target() does must not depend on the rank"
            )
        else:
            self.refusal = GateError(
                f"rank {rank} did not end example {number + 1} in {self._seconds:g} s"
            )
        raise self.refusal


def _origin(error: BaseException) -> str:
    """Return what tells one failure from another, as hypothesis does: its type and its line."""
    frames = extract_tb(error.__traceback__)
    line = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__qualname__}{line}"


@cache
def _failure_type(failures: tuple[tuple[int, str], ...]) -> type[AnotherRankFailed]:
    """Return a type of its own for each failure, since hypothesis shrinks each by itself."""
    return type(AnotherRankFailed.__name__, (AnotherRankFailed,), {"failures": failures})


def _sentence(failures: tuple[tuple[int, str], ...]) -> str:
    told = "; ".join(f"rank {rank} raised {origin}" for rank, origin in failures)
    return f"this rank passed the example, but {told}"


def _mark(error: BaseException, kind: type[AnotherRankFailed]) -> None:
    """Make hypothesis tell this failure from others as the ranks that passed do."""
    deepest, seen = error, {id(error)}
    while deepest.__context__ is not None and id(deepest.__context__) not in seen:
        deepest = deepest.__context__
        seen.add(id(deepest))
    if deepest.__context__ is None and not isinstance(deepest, AnotherRankFailed):
        deepest.__context__ = kind("the same on all ranks")
        deepest.__suppress_context__ = True  # it is for hypothesis, and not to be shown


def _reject() -> NoReturn:
    from hypothesis import reject

    reject()
    raise AssertionError("hypothesis' reject() raises")
