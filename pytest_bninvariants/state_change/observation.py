"""What a guard observed of one step: state before and after, what happened, and what changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from pytest_bninvariants.diagnosis.wording import span
from pytest_bninvariants.selection.bn_layers import counts_batches
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.snapshot.changes import compare_buckets
from pytest_bninvariants.snapshot.extra_state.compare import extra_changes
from pytest_bninvariants.snapshot.extra_state.read import read_extra_state
from pytest_bninvariants.state_change.before_after import (
    StateAfter,
    StateBefore,
    read_state_after,
)
from pytest_bninvariants.state_change.layer_activity import LayerActivity
from pytest_bninvariants.state_change.witness import Witness
from pytest_bninvariants.verdict import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A model before, during and after a step.

    Args:
        scope: what is watched.
        before: the model's watched state before the step.
        after: the model after it.
        witness: what was seen in between.
        changes: what broke the invariant, in the model's order.
        unchanged: keys of tensors that comparing buckets showed to be unchanged.
        touched: whether any memory was written or replaced, as far as a quick check tells.
    """

    scope: Scope
    before: StateBefore
    after: StateAfter
    witness: Witness
    changes: tuple[Change, ...]
    unchanged: Collection[str]
    touched: bool


def observe(before: StateBefore, witness: Witness, scope: Scope) -> Observation:
    """Compare a model with its state before the step; the caller must hold `undisturbed()`.

    Args:
        before: the state before the step.
        witness: what was seen since, of the same model.
        scope: what is watched.
    """
    after = read_state_after(witness.model, scope, before.selection)
    buckets = compare_buckets(before.kept, after.tensors)
    changes = before.changes_to(after.tensors, after.new_keys, buckets.unchanged)
    moved = {change.layer for change in changes if change.of_statistics}
    changes += _eps_changes(before, after)
    if before.extra:
        changes += extra_changes(before.extra, read_extra_state(after.selection, scope))
    if scope.judges_normalisation:
        changes += _normalisation_changes(before, after, witness, moved)
    return Observation(
        scope=scope,
        before=before,
        after=after,
        witness=witness,
        changes=_in_model_order(changes, before, after),
        unchanged=buckets.unchanged,
        touched=bool(changes) or not buckets.untouched,
    )


def _eps_changes(before: StateBefore, after: StateAfter) -> Iterator[Change]:
    """Yield a change for each layer whose eps changed: no tensor moved, but every output does."""
    settings = after.settings
    for key, old in before.settings.items():
        new = settings.get(key)
        if new is None or new is old or "eps" not in old.keys() & new.keys():
            continue
        if new["eps"] != old["eps"]:
            name = before.selection.bn_names[key]
            text = f"eps {old['eps']} -> {new['eps']}"
            yield Change(name=name, layer=name, kind="eps", text=text)


def _normalisation_changes(
    before: StateBefore, after: StateAfter, witness: Witness, moved: Collection[str]
) -> Iterator[Change]:
    """Yield a change for each layer that used batch statistics without moving any statistic.

    Args:
        before: the state before the step.
        after: the model after the step.
        witness: what was seen in between.
        moved: names of layers whose statistics moved.
    """
    for key, layer in before.selection.bn_layers.items():
        name = before.selection.bn_names[key]
        earlier = after.unless_moved(key, layer)
        activity = witness.layers.activity_under_name(earlier, after.bn_layers[key])
        if name in moved or not (
            witness.used_batch_statistics(activity)
            or witness.may_have_used_batch_statistics_unseen(layer, activity)
        ):
            continue
        batches = 0 if activity.may_have_run_unseen else activity.batches
        if _would_have_counted(layer, activity) and not witness.counted_a_batch(key):
            continue
        counted = f" {span([batches], 'batch', 'batches')}" if batches else ""
        text = f"normalised{counted} with batch statistics"
        yield Change(name=name, layer=name, kind="batch-statistics", text=text)


def _would_have_counted(layer: nn.Module, activity: LayerActivity) -> bool:
    """Tell whether a forward that was not seen would have moved a layer's counter."""
    seen = activity.batches > 0 or "batch" in activity.outputs.values()
    return not seen and counts_batches(layer)


def _in_model_order(
    changes: Iterable[Change], before: StateBefore, after: StateAfter
) -> tuple[Change, ...]:
    if not changes:
        return ()
    names = dict.fromkeys([*before.names.modules, *after.names.modules])
    order = {name: number for number, name in enumerate(names)}
    return tuple(sorted(changes, key=lambda change: order[change.layer]))
