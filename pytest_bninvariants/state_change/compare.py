"""Compare a model's watched state before and after a step."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from pytest_bninvariants.selection.bn_layers import (
    STATISTICS,
    counts_batches,
    has_known_forward,
    is_bn_layer,
)
from pytest_bninvariants.selection.model_names import join, own_tensors
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.snapshot.tensors import changes_since, compare_buckets
from pytest_bninvariants.state_change import value_patterns
from pytest_bninvariants.state_change.before_after import StateAfter, StateBefore, read_state_after
from pytest_bninvariants.state_change.evidence import ChangeEvidence, LayerEvidence
from pytest_bninvariants.state_change.hazards import hazards
from pytest_bninvariants.state_change.rule_order import diagnose
from pytest_bninvariants.state_change.tensor_history import TensorHistory
from pytest_bninvariants.state_change.value_patterns import casts_of
from pytest_bninvariants.state_change.witness import LayerActivity, Witness
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Cause, Change, Hazard


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDifference:
    """What differs after a step.

    Args:
        changes: what broke the invariant, in the model's order.
        causes: why.
        hazards: what else is worth saying.
        touched: whether memory was written or is elsewhere, as far as is known.
    """

    changes: tuple[Change, ...]
    causes: tuple[Cause, ...]
    hazards: tuple[Hazard, ...]
    touched: bool


def compare(
    before: StateBefore,
    model: nn.Module,
    scope: Scope,
    witness: Witness,
    known: Collection[Change] = (),
) -> StateDifference:
    """Compare a model with its state before the step, and explain what differs.

    Args:
        before: the snapshot.
        model: the same model, now.
        scope: what is watched.
        witness: what was seen in between.
        known: changes that are not to be explained, since they were there when it began to see.
    """
    with undisturbed():
        after = read_state_after(model, scope, before.selection)
        there = () if after.is_like_before else after.selection.tensors
        new = [key for key in there if key not in before.names.tensors]
        unchanged, untouched = compare_buckets(before.kept, after.tensors)
        changes = changes_since(before.kept, after.tensors, new, unchanged)
        changes += _layer_changes(before, after, witness, scope, changes)
        if changes:
            names = dict.fromkeys([*before.names.modules, *after.names.modules])
            order = {name: number for number, name in enumerate(names)}
            changes.sort(key=lambda change: order[change.layer])
        unexplained = [change for change in changes if change not in known]
        return StateDifference(
            changes=tuple(changes),
            causes=diagnose(_evidence_of(unexplained, before, after, witness)),
            hazards=tuple(hazards(model, before, after, scope, changes, unchanged, witness)),
            touched=bool(changes) or not untouched,
        )


def _layer_changes(
    before: StateBefore, after: StateAfter, witness: Witness, scope: Scope, changes: list[Change]
) -> Iterator[Change]:
    """Yield the violations that are a layer's and no tensor's: its eps, and how it normalised."""
    told = {change.layer for change in changes if change.of_statistics}
    judged, settings = scope.judges_normalisation, after.settings
    for key, layer in before.selection.bn_layers.items():
        name = before.selection.bn_names[key]
        old, new = before.settings[key], settings.get(key)
        if new is not None and new is not old and new.get("eps", old.get("eps")) != old.get("eps"):
            text = f"eps {old.get('eps')} -> {new['eps']}"
            yield Change(name=name, layer=name, kind="eps", text=text)
        seen = _seen(witness, layer, after.bn_layers[key])
        if not (judged and witness.used_batch_statistics(seen)):
            continue
        bytes_tell = seen.batches == 0 and counts_batches(layer)
        if not bytes_tell and name not in told:
            batches = f" {seen.batches} batch{'es' * (seen.batches > 1)}" if seen.batches else ""
            text = f"normalised{batches} with batch statistics"
            yield Change(name=name, layer=name, kind="batch-statistics", text=text)


def _seen(witness: Witness, old: nn.Module | None, new: nn.Module | None) -> LayerActivity:
    """Return what was seen of a layer, under whichever module object it ran."""
    of_old = witness.seen_of(old)
    if new is old:
        return of_old
    of_new = witness.seen_of(new)
    return of_new if old is None or (of_new.normalised and not of_old.normalised) else of_old


def _evidence_of(
    changes: list[Change], before: StateBefore, after: StateAfter, witness: Witness
) -> Iterator[ChangeEvidence]:
    """Yield what is known of each change."""
    if not changes:
        return
    names = dict.fromkeys(change.layer for change in changes)
    layers = {name: _layer(name, before, after, witness) for name in names}
    kept = {each.watched.name: (key, each) for key, each in before.kept.items()}
    others = _names_beside(kept, after)
    for change in changes:
        layer = layers[change.layer]
        key, was = kept.get(change.name, (change.name, None))
        now = after.tensors.get(key)
        if was is None or now is None:
            yield ChangeEvidence(change=change, layer=layer, history=TensorHistory())
            continue
        handled = witness.done_to(was.watched.tensor)
        yield ChangeEvidence(
            change=change,
            layer=layer,
            history=handled,
            factor=value_patterns.uniform_factor(was, now.tensor) if handled.stepped else None,
            casts=casts_of(was, now.tensor),
            stranger=witness.stranger(was.watched.tensor),
            had_gradient=was.requires_grad,
            has_gradient=now.tensor.requires_grad,
            buffer=was.watched.kind == "buffer",
            compiled=witness.saw_compiled,
            tied=tuple(others.get(id(now.tensor), ())),
        )


def _names_beside(watched: Collection[str], after: StateAfter) -> dict[int, list[str]]:
    """Return, by their ids, names of a model's tensors that are not among those watched."""
    found: dict[int, list[str]] = {}
    for each in after.names.tensors.values():
        if each.name not in watched:
            found.setdefault(id(each.tensor), []).append(each.name)
    return found


def _stored(key: str, before: StateBefore) -> bool:
    """Tell whether a watched BN layer had running statistics; of other layers nothing is asked."""
    names = (join(key, name) for name in STATISTICS)
    return key not in before.settings or all(name in before.names.tensors for name in names)


def _layer(name: str, before: StateBefore, after: StateAfter, witness: Witness) -> LayerEvidence:
    key = before.names.bare.get(name, after.names.bare.get(name, name))
    old = before.names.modules.get(name)
    new = after.module(key, old)
    return LayerEvidence(
        name=name,
        activity=_seen(witness, old, new),
        is_bn=any(module is not None and is_bn_layer(module) for module in (old, new)),
        began_in_training=witness.began_in_training(old),
        stored=_stored(key, before),
        before=None if old is None else type(old).__name__,
        after=None if new is None else type(new).__name__,
        replaced=old is not new and not (old is not None and witness.seen_of(old).normalised),
        in_training=new is not None and new.training,
        trains=new is not None and any(t.requires_grad for _, _, t in own_tensors(new)),
        ran=witness.ran_module(new) and not (new is not None and has_known_forward(new)),
    )
