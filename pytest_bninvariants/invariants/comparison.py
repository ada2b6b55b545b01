"""Compare a model's watched state before and after a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from pytest_bninvariants.invariants import snapshot
from pytest_bninvariants.invariants.diagnosis import Layer, diagnose
from pytest_bninvariants.invariants.normalisation import counts_batches
from pytest_bninvariants.invariants.selection import (
    Names,
    Scope,
    Selection,
    Watched,
    has_stored_statistics,
    is_bn_layer,
    own_tensors,
    select,
)
from pytest_bninvariants.invariants.verdict import Cause, Change, Hazard
from pytest_bninvariants.invariants.witness import Seen, Witness

_SETTINGS = ("momentum", "track_running_stats")


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

    @property
    def layers(self) -> set[str]:
        """Return the names of all watched layers."""
        owners = {kept.watched.layer for kept in self.kept.values()}
        return owners | {self.selection.bn_names[key] for key in self.selection.bn_layers}


def take(model: nn.Module, scope: Scope) -> Before:
    """Take a snapshot of what a scope covers in a model.

    Raises:
        GateError: there is nothing to watch, or it cannot be compared.
    """
    with _undisturbed():
        selection = select(model, scope)
        return Before(
            names=selection.names,
            keys=frozenset(key for key, _ in selection.names.tensors()),
            selection=selection,
            kept=snapshot.take(selection.tensors),
            settings={key: _settings(layer) for key, layer in selection.bn_layers.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What differs after a step.

    Args:
        changes: what broke the invariant, in the model's order.
        causes: why.
        hazards: what else is worth saying.
    """

    changes: tuple[Change, ...]
    causes: tuple[Cause, ...]
    hazards: tuple[Hazard, ...]


def compare(before: Before, model: nn.Module, scope: Scope, witness: Witness) -> Findings:
    """Compare a model with its state before the step, and explain what differs.

    Args:
        before: the snapshot.
        model: the same model, now.
        scope: what is watched.
        witness: what was seen in between.
    """
    with _undisturbed():
        after = _After.of(model, scope)
        new = [key for key in after.selection.tensors if key not in before.keys]
        changes = snapshot.changes(before.kept, after.tensors, new)
        changes += _layer_changes(before, after, witness, scope, changes)
        names = dict.fromkeys([*before.names.modules, *after.names.modules])
        order = {name: number for number, name in enumerate(names)}
        changes.sort(key=lambda change: order[change.layer])
        return Findings(
            changes=tuple(changes),
            causes=diagnose(_known_of(changes, before, after, witness)),
            hazards=tuple(_hazards(before, after, changes)),
        )


def _settings(layer: nn.Module) -> dict[str, object]:
    names = ("eps", *_SETTINGS)
    found = {name: _plain(getattr(layer, name)) for name in names if hasattr(layer, name)}
    return found | {"stores": has_stored_statistics(layer)}


def _plain(value: object) -> object:
    """Return a setting as a value that stays and can be compared: users assign tensors too."""
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist()
    return value if value == value else "nan"


@dataclass(frozen=True, slots=True, kw_only=True)
class _After:
    names: Names
    modules: Mapping[str, list[nn.Module]]
    tensors: Mapping[str, Watched]
    selection: Selection

    def module(self, key: str, before: nn.Module | None) -> nn.Module | None:
        """Return what holds a name now; of a wrapper and what it wraps, the one that did before."""
        holders = self.modules.get(key, ())
        if any(holder is before for holder in holders):
            return before
        return holders[-1] if holders else None

    @classmethod
    def of(cls, model: nn.Module, scope: Scope) -> _After:
        selection = select(model, scope, complain=False)
        names = selection.names
        modules: dict[str, list[nn.Module]] = {}
        for name, module in names.modules.items():
            modules.setdefault(names.bare[name], []).append(module)
        return cls(
            names=names,
            modules=modules,
            tensors=dict(names.tensors()),
            selection=selection,
        )


def _layer_changes(
    before: Before, after: _After, witness: Witness, scope: Scope, changes: list[Change]
) -> Iterator[Change]:
    """Yield the violations that are a layer's and no tensor's: its eps, and how it normalised."""
    told = {change.layer for change in changes if change.of_statistics}
    for key, layer in before.selection.bn_layers.items():
        name = before.selection.bn_names[key]
        now = after.module(key, layer)
        old_eps = before.settings[key].get("eps")
        new_eps = _plain(getattr(now, "eps", old_eps))
        if old_eps != new_eps:
            yield Change(name=name, layer=name, kind="eps", text=f"eps {old_eps} -> {new_eps}")
        seen = _seen(witness, layer, now)
        bytes_tell = seen.batches == 0 and counts_batches(layer)
        used = witness.used_batch_statistics(seen) and not bytes_tell
        if scope.judges_normalisation and used and name not in told:
            batches = f" {seen.batches} batch{'es' * (seen.batches > 1)}" if seen.batches else ""
            text = f"normalised{batches} with batch statistics"
            yield Change(name=name, layer=name, kind="batch-statistics", text=text)


def _seen(witness: Witness, *modules: nn.Module | None) -> Seen:
    """Return what was seen of a layer, under whichever module object it ran."""
    found = [witness.seen_of(module) for module in modules if module is not None]
    return next((seen for seen in found if seen.normalised), found[0] if found else Seen())


def _known_of(
    changes: list[Change], before: Before, after: _After, witness: Witness
) -> Iterator[Layer]:
    """Yield what is known of each layer that changed."""
    for name in dict.fromkeys(change.layer for change in changes):
        key = before.names.bare.get(name, after.names.bare.get(name, name))
        old = before.names.modules.get(name)
        new = after.module(key, old)
        yield Layer(
            name=name,
            changes=tuple(change for change in changes if change.layer == name),
            seen=_seen(witness, old, new),
            is_bn=any(module is not None and is_bn_layer(module) for module in (old, new)),
            began_in_training=witness.began_in_training(old),
            stored=bool(before.settings.get(key, {}).get("stores", True)),
            before=None if old is None else type(old).__name__,
            after=None if new is None else type(new).__name__,
            replaced=old is not new and not (old is not None and witness.seen_of(old).normalised),
            in_training=new is not None and new.training,
            trains=new is not None and any(t.requires_grad for _, _, t in own_tensors(new)),
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
            text = f"was a {watched.kind} and is a {now.kind}; an optimizer may hold the old tensor"
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
        name, old = before.selection.bn_names[key], before.selection.bn_layers[key]
        new = after.module(key, old)
        if new is None:
            continue
        if type(old) is not type(new) and name not in swapped:
            yield Hazard(
                name=name, text=f"was {type(old).__name__} and is {type(new).__name__} now"
            )
        for setting in _SETTINGS:
            value = _plain(getattr(new, setting, settings.get(setting)))
            if setting in settings and value != settings[setting]:
                yield Hazard(name=name, text=f"{setting} {settings[setting]} -> {value}")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep a user's dispatch and function modes from seeing or changing what a guard does."""
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
        yield
