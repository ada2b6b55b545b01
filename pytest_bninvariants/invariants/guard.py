"""The base of all guards: a context manager around one step, which judges when it ends."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import ClassVar, NoReturn

from torch import nn

from pytest_bninvariants import run_config
from pytest_bninvariants.errors import GateError, InvariantBroken, InvariantHazard, Refusal
from pytest_bninvariants.frames import relative_path, user_line
from pytest_bninvariants.guard_registry import add_raised, complaints, open_guards
from pytest_bninvariants.history.recorder import StatisticsRecorder, start_recording
from pytest_bninvariants.invariants.conclude import conclude
from pytest_bninvariants.reporting.verdict_text import hazards_in_a_line
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.reads.capture import refuse_during_capture
from pytest_bninvariants.trace.tracer import Tracer, start_tracing
from pytest_bninvariants.verdict import Change, Verdict

_NEVER_ENTERED = "was never entered, so it watched nothing: use `with`"
_NEVER_LEFT = "was entered and never left, so it compared nothing: use `with`"


class GuardNeverEntered(UserWarning):
    """Issued when a guard is thrown away without having been entered: it watched nothing.

    Under pytest the test that made it fails as well.

    Examples:
        >>> import torch, warnings
        >>> from pytest_bninvariants import frozen_bn
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     guard = frozen_bn(torch.nn.BatchNorm1d(2))
        ...     del guard  # it was not used in a `with`
        >>> print(caught[0].category.__name__, caught[0].message)
        GuardNeverEntered frozen_bn(), made at ..., was never entered, so it watched nothing: ...
    """


_numbers = itertools.count()
_warned: dict[str | tuple[str, type[Warning], int], int] = {}


class Guard:
    """Check an invariant of one model around one step; a context manager, for use once.

    Subclasses say what to keep when the step begins, what to stop when it ends, and how to judge.

    Args:
        model: the model.
        spelling: the guard as its user wrote it, e.g. `frozen_bn('backbone')`.

    Attributes:
        failure: the exception that it raises if the invariant is broken.
        broken_by_writes: whether writes to tensors can break the invariant, so that `--bn-trace`
            looks for who wrote.
        judges_halfway: whether its verdict means anything after a step that raised.
        companion: another guard around the same step, which starts and ends with this one.
        made_at: file and line that its warnings point at.
        sources: where the pytest layer found each of its models, e.g. `fixture 'model'`; empty if
            the user passed the models.
        verdict: what the guard found; None until it has ended.
        is_at_once: whether its step is empty: it judges the models as they are.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import frozen_bn
        >>> model = torch.nn.BatchNorm1d(2).eval()
        >>> with frozen_bn(model) as guard:
        ...     _ = model(torch.ones(4, 2))
        >>> guard.verdict.holds, guard.verdict.layers, guard.verdict.tensors
        (True, 1, 5)
    """

    failure: ClassVar[type[InvariantBroken]] = InvariantBroken
    judges_halfway: ClassVar[bool] = False
    broken_by_writes: ClassVar[bool] = False

    def __init__(self, model: nn.Module, spelling: str) -> None:
        self.model = model
        self.spelling = spelling
        self.sources: tuple[str, ...] = ()
        self.verdict: Verdict | None = None
        self.is_at_once = False
        self.companion: Guard | None = None
        self._used = self._started = self._is_companion = False
        self._tracer: Tracer | None = None
        self._recorder: StatisticsRecorder | None = None
        self._number = next(_numbers)
        self.made_at = user_line()
        file, line = self.made_at
        self._described = f"{self.spelling}, made at {relative_path(file)}:{line},"
        complaints[self._number] = f"{self._described} {_NEVER_ENTERED}"

    def __enter__(self) -> Guard:
        __tracebackhide__ = True
        try:
            self.start()
        except GateError as error:
            add_raised(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        __tracebackhide__ = True
        try:
            conclude([self], error, every=True)
        except (GateError, InvariantBroken) as failure:
            add_raised(failure)
            raise

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refuse to be a decorator.

        Raises:
            GateError: always.
        """
        __tracebackhide__ = True
        self._use()
        name = self.spelling.partition("(")[0]
        error = GateError(
            f"{self.spelling} is a context manager, not a decorator: write `with {name}(...):` "
            f"around the step, or mark a test with @pytest.mark.{name}"
        )
        add_raised(error)
        raise error

    def __del__(self) -> None:
        if not (getattr(self, "_used", True) or self._is_companion):
            text = f"{self._described} {_NEVER_ENTERED}"
            with suppress(GuardNeverEntered):  # an error here would go nowhere
                warnings.warn_explicit(text, GuardNeverEntered, *self.made_at)

    @property
    def parts(self) -> tuple[Guard, ...]:
        """Return the guard, and its companion if it has one."""
        return (self,) if self.companion is None else (self, self.companion)

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Return the models that the guard checks."""
        return (self.model,)

    @property
    def source(self) -> str:
        """Return where its models were found; empty if the user passed them."""
        return " and ".join(filter(None, self.sources))

    @property
    def watched_layers(self) -> frozenset[str]:
        """Return the names of the layers that it watches, without wrapper prefixes.

        It knows them once it has started; there are none if it judges outputs, or only what the
        step leaves.
        """
        return frozenset()

    @property
    def left_open(self) -> str:
        """Return the text reported when the guard is never left."""
        return f"{self._described} {_NEVER_LEFT}"

    def _begin(self) -> None:
        """Keep what the verdict needs of the model, and begin to watch.

        Raises:
            Refusal: if there is nothing to watch, or it cannot be compared.
        """
        raise NotImplementedError

    def _end(self) -> None:
        """Stop watching, if `_begin` started that."""

    def _judge(self) -> Verdict:
        """Compare and explain, once, after `_begin` and `_end`.

        Raises:
            Refusal: if there is nothing to judge.
        """
        raise NotImplementedError

    def abandon(self, error: BaseException) -> None:
        """Tell those who wait for a verdict that the step raised, so that there is none.

        Args:
            error: what the step raised.
        """

    def _traced(self) -> Mapping[str, KeptTensor]:
        """Return what `_begin` kept of the tensors whose writers matter."""
        return {}

    def _pictured_layers(self) -> Mapping[str, nn.Module]:
        """Return the BN layers by name whose statistics a report shows."""
        return {}

    def _written(self, verdict: Verdict) -> Iterable[Change]:
        """Return the changes of such tensors that broke the invariant."""
        return verdict.changes

    def attach(self, companion: Guard) -> Guard:
        """Make another guard start and end with this one; each gives its own verdict."""
        complaints.pop(companion._number, None)
        companion._is_companion = True
        self.companion = companion
        return self

    def start(self) -> None:
        """Keep what the verdict needs of the model, and begin to watch.

        Raises:
            GateError: if there is nothing to watch, or it cannot be compared.
        """
        if self._used:
            raise GateError(f"{self.spelling} guards one step: make a new guard for the next")
        self._use()
        try:
            refuse_during_capture(self.models, "entered")
            self._begin()
            self._tracer = start_tracing(self._traced()) if self.broken_by_writes else None
            self._recorder = start_recording(self._pictured_layers())
            self._started = True
            if self.companion is not None:
                self.companion.start()
        except BaseException as error:
            self.stop()
            if isinstance(error, Refusal):
                raise error.as_gate_error(self.spelling) from error.__cause__
            raise
        if not self._is_companion:
            open_guards[self._number] = self

    def stop(self) -> None:
        """Stop watching."""
        self._use()
        open_guards.pop(self._number, None)
        if self.companion is not None:
            self.companion.stop()
        if self._tracer is not None:
            self._tracer.stop()
        if self._recorder is not None:
            self._recorder.stop()
        self._end()

    def finish(self) -> Verdict:
        """Stop watching, and return the verdict.

        Raises:
            GateError: if the guard never started, or nothing ran that could have changed anything.
        """
        self.stop()
        if not self._started:
            raise GateError(f"{self.spelling} was never started")
        self._started = False
        try:
            refuse_during_capture(self.models, "left")
            self.verdict = self._with_history(self._with_writes(self._judge()))
        except Refusal as refusal:
            raise refusal.as_gate_error(self.spelling) from refusal.__cause__
        return self.verdict

    def _with_history(self, verdict: Verdict) -> Verdict:
        """Return a verdict with how statistics went in the step, if a report wants that."""
        recorder, self._recorder = self._recorder, None
        if recorder is None or (verdict.holds and run_config.current.histories != "all"):
            return verdict
        return replace(verdict, history=recorder.history())

    def _with_writes(self, verdict: Verdict) -> Verdict:
        """Return a verdict with what the trace found, if a write can break the invariant."""
        if not self.broken_by_writes:
            return verdict
        tracer, self._tracer = self._tracer, None
        return replace(verdict, writes=tracer.writes(self._written(verdict)) if tracer else ())

    def warn(self) -> None:
        """Warn of what may go wrong later, once for each place and text."""
        if self.verdict is not None and self.verdict.hazards:
            text = f"{self.spelling} holds, but {hazards_in_a_line(self.verdict.hazards)}"
            warnings.warn_explicit(text, InvariantHazard, *self.made_at, registry=_warned)

    def _use(self) -> None:
        self._used = True
        complaints.pop(self._number, None)


def at_once(guard: Guard) -> Verdict:
    """Return the verdict of a guard around an empty step: it judges the models as they are now.

    Raises:
        InvariantBroken: if the invariant does not hold.
        GateError: if the guard could not judge.
    """
    __tracebackhide__ = True
    guard.is_at_once = True
    with guard:
        pass
    assert guard.verdict is not None
    return guard.verdict
