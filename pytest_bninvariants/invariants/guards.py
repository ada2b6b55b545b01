"""The invariants as context managers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from pytest_bninvariants.errors import FrozenStateChanged, GateError, shown
from pytest_bninvariants.invariants import snapshot
from pytest_bninvariants.invariants.diagnosis import Layer, diagnose
from pytest_bninvariants.invariants.normalisation import has_stored_statistics
from pytest_bninvariants.invariants.selection import (
    STATISTICS,
    Names,
    Scope,
    Selection,
    names_of,
    select,
)
from pytest_bninvariants.invariants.tracebacks import drop_our_frames
from pytest_bninvariants.invariants.verdict import Change, Hazard, Verdict
from pytest_bninvariants.invariants.witness import Seen, Witness
from pytest_bninvariants.reporting.text import render

_SETTINGS = ("momentum", "track_running_stats")
_NOT_FAILURES = (KeyboardInterrupt, SystemExit, GeneratorExit)


class GuardNeverEntered(UserWarning):
    """Say that a guard was made and thrown away without `with`, and so watched nothing."""


abandoned: list[str] = []
"""Guards that were thrown away unused; the pytest layer fails the test that made them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """A model's watched state before the step.

    Args:
        names: the model's modules by name.
        keys: the keys of all tensors that the model had.
        selection: what is watched.
        kept: the watched tensors' bytes.
        settings: `eps`, `momentum` and `track_running_stats` of each watched BN layer.
    """

    names: Names
    keys: frozenset[str]
    selection: Selection
    kept: dict[str, snapshot.Kept]
    settings: dict[str, dict[str, object]]


class Guard:
    """Watch one model around one step; a context manager, for use once.

    Args:
        invariant: name of the invariant.
        noun: what its layers are called.
        model: the model.
        scope: what is watched in it.
        source: where the model was found; empty where it was passed.
    """

    def __init__(
        self, invariant: str, noun: str, model: nn.Module, scope: Scope, source: str = ""
    ) -> None:
        self.model = model
        self.spelled = _spelled(invariant, scope)
        self.verdict: Verdict | None = None
        self.before: Before | None = None
        self._noun = noun
        self._scope = scope
        self._source = source
        self._witness: Witness | None = None
        self._used = False

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
            abandoned.append(self.spelled)
            message = (
                f"{self.spelled} was made and never entered, so it watched nothing: use `with`"
            )
            warnings.warn(message, GuardNeverEntered, stacklevel=2)

    def start(self, before: Before | None = None) -> None:
        """Take the snapshot and begin to watch.

        Args:
            before: an older state of the same model to compare with instead.

        Raises:
            GateError: there is nothing to watch, or it cannot be compared.
        """
        if self._used:
            raise GateError(f"{self.spelled} is for one step: make another for the next")
        self._used = True
        with _undisturbed():
            now = _take(self.model, self._scope)
        self.before = before or now
        self._witness = Witness(self.model, now.selection)
        self._witness.start()

    def stop(self) -> None:
        """Watch no longer."""
        if self._witness is not None:
            self._witness.stop()

    def finish(self) -> Verdict:
        """Stop watching and judge.

        Raises:
            GateError: nothing ran that could have changed anything.
        """
        self.stop()
        if self.before is None or self._witness is None:
            raise GateError(f"{self.spelled} was never started")
        with _undisturbed():
            verdict = self._judge(self.before, self._witness)
        if verdict.holds and not self._witness.ran():
            raise GateError(
                f"nothing ran inside {self.spelled}: it saw no forward of a watched layer, no step of "
                "an optimizer that holds the model's parameters and no other change of the model; "
                "run the train step, on this very model, inside the guard"
            )
        self.verdict = verdict
        self.before = self._witness = None
        return verdict

    def _judge(self, before: Before, witness: Witness) -> Verdict:
        after = _After.of(self.model, self._scope)
        new = [key for key in after.selection.tensors if key not in before.keys]
        changes = snapshot.changes(before.kept, after.tensors, new)
        changes += _layer_changes(before, after, witness, self._scope, changes)
        order = {
            name: number
            for number, name in enumerate([*before.names.modules, *after.names.modules])
        }
        changes.sort(key=lambda change: order[change.layer])
        layers = {kept.watched.layer for kept in before.kept.values()}
        layers |= {before.names.full[key] for key in before.selection.bn_layers}
        return Verdict(
            guard=self.spelled,
            noun=self._noun,
            model=type(self.model).__name__,
            source=self._source,
            layers=len(layers),
            tensors=len(before.kept),
            changes=tuple(changes),
            causes=diagnose(_known_of(changes, before, after, witness)),
            hazards=tuple(_hazards(before, after, changes)),
        )


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
    for guard in guards:
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
            broken += [] if verdict.holds else [verdict]
    told = render(broken) if broken else ""
    if blind:
        failure = GateError("\n".join(blind))
        if told:
            failure.add_note(told)
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
            error.add_note(
                f"\nwhen this was raised, frozen state had changed:\n{render([verdict])}"
            )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep a user's dispatch and function modes from seeing what a guard does, and from changing it."""
    with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def _spelled(invariant: str, scope: Scope) -> str:
    arguments = [repr(name) for name in scope.modules]
    arguments += [] if scope.parameters else ["parameters=False"]
    arguments += [] if scope.buffers else ["buffers=False"]
    arguments += ["allow_batch_stats=True"] if scope.allow_batch_stats else []
    if scope.exclude:
        exclude = scope.exclude[0] if len(scope.exclude) == 1 else list(scope.exclude)
        arguments.append(f"exclude={exclude!r}")
    return f"{invariant}({', '.join(arguments)})"


def _take(model: nn.Module, scope: Scope) -> Before:
    selection = select(model, scope)
    names = Names.of(model)
    return Before(
        names=names,
        keys=frozenset(key for key, _ in names.tensors()),
        selection=selection,
        kept=snapshot.take(selection.tensors),
        settings={key: _settings(layer) for key, layer in selection.bn_layers.items()},
    )


def _settings(layer: nn.Module) -> dict[str, object]:
    return {name: getattr(layer, name) for name in ("eps", *_SETTINGS) if hasattr(layer, name)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _After:
    names: Names
    modules: dict[str, nn.Module]
    tensors: dict[str, Any]
    selection: Selection

    @classmethod
    def of(cls, model: nn.Module, scope: Scope) -> _After:
        names = Names.of(model)
        return cls(
            names=names,
            modules={names.bare[name]: module for name, module in names.modules.items()},
            tensors=dict(names.tensors()),
            selection=select(model, scope, complain=False),
        )


def _layer_changes(
    before: Before, after: _After, witness: Witness, scope: Scope, changes: list[Change]
) -> Iterator[Change]:
    """Yield the violations that are a layer's and no tensor's: its eps, and how it normalised."""
    told = {c.layer for c in changes if c.name.endswith((*STATISTICS, "num_batches_tracked"))}
    for key, layer in before.selection.bn_layers.items():
        name = before.names.full[key]
        now = after.modules.get(key)
        old_eps, new_eps = before.settings[key].get("eps"), getattr(now, "eps", None)
        if None not in (old_eps, new_eps) and old_eps != new_eps:
            text = f"eps {snapshot.arrow(float(str(old_eps)), float(str(new_eps)))}"
            yield Change(name=name, layer=name, kind="eps", text=text)
        seen = _seen(witness, layer, now)
        if scope.judges_normalisation and seen.used_batch_statistics and name not in told:
            batches = f" {seen.batches} batch{'es' * (seen.batches > 1)}" if seen.batches else ""
            text = f"normalised{batches} with batch statistics"
            yield Change(name=name, layer=name, kind="batch-statistics", text=text)


def _seen(witness: Witness, *modules: nn.Module | None) -> Seen:
    """Return what was seen of a layer, under whichever module object it ran."""
    for module in modules:
        if module is not None and (seen := witness.seen.get(module)) and seen.used_batch_statistics:
            return seen
    return next((s for m in modules if m is not None and (s := witness.seen.get(m))), Seen())


def _known_of(
    changes: list[Change], before: Before, after: _After, witness: Witness
) -> Iterator[Layer]:
    """Yield what is known of each layer that changed."""
    for name in dict.fromkeys(change.layer for change in changes):
        key = before.names.bare.get(name, after.names.bare.get(name, name))
        old = before.names.modules.get(name)
        new = after.modules.get(key)
        holder = new or old
        yield Layer(
            name=name,
            changes=tuple(change for change in changes if change.layer == name),
            seen=_seen(witness, old, new),
            is_bn=key in before.selection.bn_layers,
            began_in_training=witness.began_in_training.get(key, False),
            stores=holder is not None and has_stored_statistics(holder),
            before=None if old is None else type(old).__name__,
            after=None if new is None else type(new).__name__,
            same_object=old is new,
            in_training=new is not None and new.training,
        )


def _hazards(before: Before, after: _After, changes: Iterable[Change]) -> Iterator[Hazard]:
    """Yield what is worth saying of names and layers besides their changes."""
    violated = {change.name for change in changes}
    swapped = {change.layer for change in changes if not change.same_object}
    for key, kept in before.kept.items():
        watched, now = kept.watched, after.tensors.get(key)
        if now is None or watched.name in violated:
            continue
        if now.kind != watched.kind:
            text = f"was a {watched.kind} and is a {now.kind} now; an optimizer may hold the old tensor"
            yield Hazard(name=watched.name, text=text)
        elif now.tensor is not watched.tensor:
            text = "is another tensor now, with equal values; an optimizer may hold the old one"
            yield Hazard(name=watched.name, text=text)
        if now.tensor.device != kept.device:
            yield Hazard(name=watched.name, text=f"moved from {kept.device} to {now.tensor.device}")
    for key, kept in before.kept.items():
        now = after.tensors.get(key)
        if now is not None and now.tensor.requires_grad and not kept.requires_grad:
            yield Hazard(name=kept.watched.name, text="had requires_grad switched on")
    for key, settings in before.settings.items():
        name, old, new = (
            before.names.full[key],
            before.selection.bn_layers[key],
            after.modules.get(key),
        )
        if new is None:
            continue
        if type(old) is not type(new) and name not in swapped:
            yield Hazard(
                name=name, text=f"was {type(old).__name__} and is {type(new).__name__} now"
            )
        for setting in _SETTINGS:
            value = getattr(new, setting, settings.get(setting))
            if setting in settings and value != settings[setting]:
                yield Hazard(name=name, text=f"{setting} {settings[setting]} -> {value}")


def _guard(invariant: str, noun: str, model: object, scope: Scope, source: str) -> Guard:
    if not isinstance(model, nn.Module):
        raise GateError(
            f"{invariant}(model, *modules) takes the model, a torch.nn.Module, first; got {shown(model)}"
        )
    return Guard(invariant, noun, model, scope, source)


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
        modules=modules,
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
    """Hold that all parameters and buffers keep their bytes, BN or not, and BN layers as `frozen_bn`.

    Args, returns and raises as `frozen_bn`.
    """
    scope = Scope(
        modules=modules,
        exclude=names_of(exclude),
        parameters=parameters,
        buffers=buffers,
        allow_batch_stats=allow_batch_stats,
    )
    return _guard("frozen", "frozen layer", model, scope, _source)
