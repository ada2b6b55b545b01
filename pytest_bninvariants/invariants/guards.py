"""The invariants as context managers."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType

from torch import nn

from pytest_bninvariants.errors import (
    DriftNote,
    FrozenStateChanged,
    GateError,
    InvariantHazard,
    never_entered,
    shown,
)
from pytest_bninvariants.invariants import reruns, tracer
from pytest_bninvariants.invariants.comparison import compare
from pytest_bninvariants.invariants.paths import relative
from pytest_bninvariants.invariants.places import users_line
from pytest_bninvariants.invariants.reruns import Slot
from pytest_bninvariants.invariants.selection import Scope, names_of
from pytest_bninvariants.invariants.sides import Before, take
from pytest_bninvariants.invariants.tracebacks import drop_our_frames
from pytest_bninvariants.invariants.tracer import Tracer
from pytest_bninvariants.invariants.verdict import Verdict
from pytest_bninvariants.invariants.witness import Witness
from pytest_bninvariants.reporting.text import hazards_in_a_line, render

_NOT_FAILURES = (KeyboardInterrupt, GeneratorExit)


class GuardNeverEntered(UserWarning):
    """Say that a guard was made and thrown away without `with`, and so watched nothing."""


pending: dict[int, str] = {}
"""Guards that were made and not entered yet; the pytest layer fails the test that leaves any."""


_numbers = itertools.count()


class Guard:
    """Watch one model around one step; a context manager, for use once.

    Args:
        invariant: name of the invariant.
        noun: what its layers are called.
        model: the model.
        scope: what is watched in it.
        source: where the model was found; empty where it was passed.

    Attributes:
        made: file and line that warnings are about.
        verdict: what was found, once it has ended.
    """

    def __init__(
        self, invariant: str, noun: str, model: nn.Module, scope: Scope, source: str = ""
    ) -> None:
        self.model = model
        self.spelled = _spelled(invariant, scope)
        self.verdict: Verdict | None = None
        self._before: Before | None = None
        self._slot = Slot()
        self._noun = noun
        self._scope = scope
        self._source = source
        self._witness: Witness | None = None
        self._tracer: Tracer | None = None
        self._used = False
        self._number = next(_numbers)
        self.made = users_line()
        file, line = self.made
        pending[self._number] = f"{self.spelled}, made at {relative(file)}:{line},"

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
        if not getattr(self, "_used", True):
            told = never_entered(pending.get(self._number, self.spelled))
            with suppress(GuardNeverEntered):  # an error here would go nowhere
                warnings.warn_explicit(told, GuardNeverEntered, *self.made)

    def start(self) -> None:
        """Take the snapshot and begin to watch.

        Raises:
            GateError: there is nothing to watch, or it cannot be compared.
        """
        if self._used:
            raise GateError(f"{self.spelled} is for one step: make another for the next")
        self._use()
        now = take(self.model, self._scope)
        self._slot = reruns.slot(self.model, self.spelled)
        self._before = self._slot.earlier or now
        self._witness = Witness(self.model, now.selection)
        self._witness.start()
        self._tracer = tracer.begin(now.kept.values())

    def _use(self) -> None:
        self._used = True
        pending.pop(self._number, None)

    def stop(self) -> None:
        """Watch no longer."""
        self._use()
        if self._tracer is not None:
            self._tracer.stop()
        if self._witness is not None:
            self._witness.stop()

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
        if self._before is None or self._witness is None:
            raise GateError(f"{self.spelled} was never started")
        found = compare(self._before, self.model, self._scope, self._witness)
        verdict = Verdict(
            guard=self.spelled,
            noun=self._noun,
            model=type(self.model).__name__,
            source=self._source,
            layers=len(self._before.layers),
            tensors=len(self._before.kept),
            changes=found.changes,
            causes=found.causes or (self._slot.causes if found.changes else ()),
            hazards=found.hazards,
            writes=self._tracer.writes(found.changes) if self._tracer else (),
        )
        if verdict.holds and not self._witness.ran():
            raise GateError(
                f"nothing ran inside {self.spelled}: it saw no forward of a watched layer, no "
                "step of an optimizer that holds the model's parameters and no other change of "
                "the model; run the train step, on this very model, inside the guard"
            )
        if not verdict.holds:
            self._slot.keep(self.model, self._before, verdict.causes)
        self.verdict = verdict
        self._before = self._witness = self._tracer = None
        return verdict


_warned: dict[str | tuple[str, type[Warning], int], int] = {}


def conclude(guards: Sequence[Guard], error: BaseException | None) -> None:
    """End a step: judge, and raise what must be raised.

    Args:
        guards: the guards around the step.
        error: the step's own exception; it wins, and what had changed is added to it as a note.

    Raises:
        FrozenStateChanged: an invariant is broken.
        GateError: a guard could not judge.
    """
    __tracebackhide__ = True
    for guard in reversed(guards):
        guard.stop()
    if error is not None:
        drop_our_frames(error)
        if not isinstance(error, _NOT_FAILURES):
            _note(guards, error)
        return
    broken: list[Verdict] = []
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
                broken.append(verdict)
    told = render(broken) if broken else ""
    if blind:
        failure = GateError("\n".join(blind))
        if told:
            failure.add_note(DriftNote(told, broken))
        raise failure
    if broken:
        raise FrozenStateChanged(told, tuple(broken))


def _note(guards: Sequence[Guard], error: BaseException) -> None:
    for guard in guards:
        try:
            verdict = guard.finish()
        except GateError:
            continue
        if not verdict.holds:
            told = f"\nwhen this was raised, frozen state had changed:\n{render([verdict])}"
            error.add_note(DriftNote(told, [verdict]))


def _spelled(invariant: str, scope: Scope) -> str:
    arguments = [repr(name) for name in scope.modules]
    arguments += [] if scope.parameters else ["parameters=False"]
    arguments += [] if scope.buffers else ["buffers=False"]
    arguments += ["allow_batch_stats=True"] if scope.allow_batch_stats else []
    if scope.exclude:
        exclude = scope.exclude[0] if len(scope.exclude) == 1 else list(scope.exclude)
        arguments.append(f"exclude={exclude!r}")
    return f"{invariant}({', '.join(arguments)})"


def _guard(invariant: str, noun: str, model: object, scope: Scope, source: str) -> Guard:
    if not isinstance(model, nn.Module):
        raise GateError(
            f"{invariant}(model, *modules) takes the model, a torch.nn.Module, first; "
            f"got {shown(model)}"
        )
    return Guard(invariant, noun, model, scope, source)


def _named(model: object, modules: tuple[object, ...]) -> tuple[str, ...]:
    """Return the modules' names, or say how to write what was passed instead of names."""
    for module in modules:
        if isinstance(module, nn.Module) and isinstance(model, nn.Module):
            names = [name for name, part in model.named_modules() if part is module]
            raise GateError(f"modules are given by name: {_advice(names)}; got {shown(module)}")
        if isinstance(module, (list, tuple, set)):
            names = [name for name in module if isinstance(name, str)]
            raise GateError(f"names are given one by one: {_advice(names)}; got {shown(module)}")
    return modules  # type: ignore[return-value]


def _advice(names: list[str]) -> str:
    return f"write {', '.join(map(repr, names))}" if names else "such as 'backbone.bn1'"


def frozen_bn(
    model: nn.Module,
    *modules: str,
    parameters: bool = True,
    buffers: bool = True,
    allow_batch_stats: bool = False,
    exclude: Iterable[str] | str = (),
    _source: str = "",
) -> Guard:
    """Hold that every BN layer keeps its state, bit for bit, and uses stored statistics throughout.

    Args:
        model: the model; names are looked up in it again after the step.
        modules: qualified names of modules or tensors; a name covers its subtree, `*` and `?` work
            as in a shell, wrapper prefixes such as `module.` may be left out. None: all BN layers.
        parameters: watch weight and bias.
        buffers: watch running statistics, and that batch statistics are not used.
        allow_batch_stats: let the layers normalise with batch statistics.
        exclude: names that are left out.

    Returns:
        A context manager for one step.

    Raises:
        GateError: when entered, if there is nothing to watch; when left, if nothing ran.
        FrozenStateChanged: when left, if a layer changed.
    """
    scope = Scope(
        modules=_named(model, modules),
        exclude=names_of(exclude),
        parameters=parameters,
        buffers=buffers,
        allow_batch_stats=allow_batch_stats,
        bn_only=True,
    )
    return _guard("frozen_bn", "frozen BN layer", model, scope, _source)


def frozen(
    model: nn.Module,
    *modules: str,
    parameters: bool = True,
    buffers: bool = True,
    allow_batch_stats: bool = False,
    exclude: Iterable[str] | str = (),
    _source: str = "",
) -> Guard:
    """Hold that all parameters and buffers keep their bytes, and BN layers what `frozen_bn` says.

    Args, returns and raises as `frozen_bn`.
    """
    scope = Scope(
        modules=_named(model, modules),
        exclude=names_of(exclude),
        parameters=parameters,
        buffers=buffers,
        allow_batch_stats=allow_batch_stats,
    )
    return _guard("frozen", "frozen layer", model, scope, _source)
