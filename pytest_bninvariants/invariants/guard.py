"""What a guard is: a context manager around one step, which judges when it ends."""

from __future__ import annotations

import asyncio
import itertools
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from pytest_bninvariants.errors import (
    DriftNote,
    GateError,
    InvariantBroken,
    InvariantHazard,
    Refusal,
)
from pytest_bninvariants.frames import drop_our_frames, relative_path, user_line
from pytest_bninvariants.guard_registry import entered, unreported
from pytest_bninvariants.reporting.verdict_text import hazards_in_a_line, headline, render
from pytest_bninvariants.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_bninvariants.verdict import Verdict


class GuardNeverEntered(UserWarning):
    """Say that a guard was made and thrown away without `with`, and so watched nothing."""


_numbers = itertools.count()


class Guard:
    """Hold an invariant of one model around one step; a context manager, for use once.

    A kind of guard says what it does at the start, at the end, and how it judges.

    Args:
        model: the model.
        spelled: the guard as its user wrote it, e.g. `frozen_bn('backbone')`.

    Attributes:
        failure: what it raises.
        judges_halfway: whether its verdict means anything where the step raised.
        companion: another guard around the same step, that this one brings along.
        made: file and line that warnings are about.
        sources: where each of its models was found, e.g. `fixture 'model'`; the pytest layer sets
            it, and none is there where the models were passed.
        verdict: what was found, once it has ended.
    """

    failure: ClassVar[type[InvariantBroken]] = InvariantBroken
    judges_halfway: ClassVar[bool] = False

    def __init__(self, model: nn.Module, spelled: str) -> None:
        self.model = model
        self.spelled = spelled
        self.verdict: Verdict | None = None
        self.companion: Guard | None = None
        self._used = self._started = self._is_companion = False
        self.sources: tuple[str, ...] = ()
        self._number = next(_numbers)
        self.made = user_line()
        file, line = self.made
        self._named = f"{self.spelled}, made at {relative_path(file)}:{line},"
        unreported[self._number] = never_entered(self._named)

    @property
    def parts(self) -> tuple[Guard, ...]:
        """Return it, and what it brings along."""
        return (self,) if self.companion is None else (self, self.companion)

    def __enter__(self) -> Guard:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        conclude([self], error)

    def __del__(self) -> None:
        if not (getattr(self, "_used", True) or self._is_companion):
            told = never_entered(self._named)
            with suppress(GuardNeverEntered):  # an error here would go nowhere
                warnings.warn_explicit(told, GuardNeverEntered, *self.made)

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Return the models that it is about."""
        return (self.model,)

    @property
    def source(self) -> str:
        """Return where its models were found; empty where they were passed."""
        return " and ".join(filter(None, self.sources))

    def _begin(self) -> None:
        """Keep what is needed of the model, and begin to watch.

        Raises:
            Refusal: if there is nothing to watch, or it cannot be compared.
        """
        raise NotImplementedError

    def _end(self) -> None:
        """Watch no longer; harmless where it does not watch."""

    def _judge(self) -> Verdict:
        """Compare and explain, once, after `_begin` and `_end`.

        Raises:
            Refusal: if there is nothing to judge.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Keep what is needed of the model, and begin to watch.

        Raises:
            GateError: there is nothing to watch, or it cannot be compared.
        """
        if self._used:
            raise GateError(f"{self.spelled} is for one step: make another for the next")
        self._use()
        try:
            self._begin()
            self._started = True
            if self.companion is not None:
                self.companion.start()
        except BaseException as error:
            self.stop()
            if isinstance(error, Refusal):
                raise error.by(self.spelled) from error.__cause__
            raise
        if not self._is_companion:
            entered[self._number] = self

    @property
    def left_open(self) -> str:
        """Return what is said of it if nobody leaves it."""
        return never_left(self._named)

    def bring(self, companion: Guard) -> Guard:
        """Have another guard start and end with this one, and judge by itself."""
        unreported.pop(companion._number, None)
        companion._is_companion = True
        self.companion = companion
        return self

    def _use(self) -> None:
        self._used = True
        unreported.pop(self._number, None)

    def stop(self) -> None:
        """Watch no longer."""
        self._use()
        entered.pop(self._number, None)
        if self.companion is not None:
            self.companion.stop()
        self._end()

    def warn(self) -> None:
        """Warn of what may go wrong later, once for each place and text."""
        if self.verdict is not None and self.verdict.hazards:
            told = f"{self.spelled} holds, but {hazards_in_a_line(self.verdict.hazards)}"
            warnings.warn_explicit(told, InvariantHazard, *self.made, registry=_warned)

    def finish(self) -> Verdict:
        """Stop watching and judge.

        Raises:
            GateError: nothing ran that could have changed anything.
        """
        self.stop()
        if not self._started:
            raise GateError(f"{self.spelled} was never started")
        self._started = False
        try:
            self.verdict = self._judge()
        except Refusal as refusal:
            raise refusal.by(self.spelled) from refusal.__cause__
        return self.verdict


_warned: dict[str | tuple[str, type[Warning], int], int] = {}


def conclude(guards: Sequence[Guard], error: BaseException | None) -> None:
    """End a step: judge, and raise what must be raised.

    Args:
        guards: the guards around the step.
        error: the step's own exception; it wins, and what had changed is added to it as a note.

    Raises:
        InvariantBroken: an invariant is broken; of what kind, the first broken guard says.
        GateError: a guard could not judge.
    """
    __tracebackhide__ = True
    guards = [part for guard in guards for part in guard.parts]
    for guard in reversed(guards):
        guard.stop()
    if isinstance(error, _CANCELLED) or _is_trios(error):
        _keep_for_the_end(guards, error)
        return
    if error is not None:
        drop_our_frames(error)
        if not isinstance(error, KeyboardInterrupt):
            _note(guards, error)
        return
    broken: dict[Guard, Verdict] = {}
    blind: list[str] = []
    for guard in guards:
        try:
            verdict = guard.finish()
        except GateError as gate_error:
            blind.append(str(gate_error))
        else:
            if verdict.holds:
                guard.warn()
            else:
                broken[guard] = verdict
    verdicts = tuple(broken.values())
    if blind:
        failure = GateError("\n".join(blind))
        if verdicts:
            failure.add_note(DriftNote(render(verdicts), verdicts))
        raise failure
    for guard in broken:
        raise guard.failure(*verdicts)


def at_once(guard: Guard) -> Verdict:
    """Have a guard judge what is there now.

    Raises:
        InvariantBroken: the invariant does not hold.
        GateError: it could not be judged.
    """
    __tracebackhide__ = True
    with guard:
        pass
    assert guard.verdict is not None
    return guard.verdict


_CANCELLED = (GeneratorExit, asyncio.CancelledError)


def _is_trios(error: BaseException | None) -> bool:
    return type(error).__name__ == "Cancelled" and type(error).__module__.startswith("trio")


def _keep_for_the_end(guards: Sequence[Guard], cancelled: BaseException | None) -> None:
    """Judge at the end of what nobody waits for any more, and so nobody hears from."""
    of = "generator" if isinstance(cancelled, GeneratorExit) else "task"
    for guard in guards:
        try:
            verdict = guard.finish()
        except GateError as error:
            unreported[guard._number] = left_unfinished(guard._named, of, str(error))
        else:
            if not verdict.holds:
                unreported[guard._number] = left_unfinished(guard._named, of, headline(verdict))


def _note(guards: Sequence[Guard], error: BaseException) -> None:
    for guard in guards:
        if not guard.judges_halfway:
            continue
        try:
            verdict = guard.finish()
        except GateError:
            continue
        if not verdict.holds:
            told = f"\nwhen this was raised, frozen state had changed:\n{render([verdict])}"
            error.add_note(DriftNote(told, [verdict]))


def never_left(made: str) -> str:
    """Return what is said of a guard that was entered and did not end."""
    return f"{made} was entered and never left, so it compared nothing: use `with`"


def left_unfinished(made: str, of: str, told: str) -> str:
    """Return what is said of a guard in a generator or task that did not come to its end."""
    return f"{made} ended with a {of} that was not run to its end, and found: {told}"


def never_entered(made: str) -> str:
    """Return what is said of a guard that was made, where that names, and not entered."""
    return f"{made} was never entered, so it watched nothing: use `with`"
