"""Gather what an observation tells about each change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from pytest_bninvariants.selection.bn_layers import STATISTICS, is_bn_layer
from pytest_bninvariants.selection.own_forward import OwnForward
from pytest_bninvariants.selection.walk import join, own_tensors
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.state_change.before_after import StateAfter, StateBefore
from pytest_bninvariants.state_change.layer_activity import LayerActivity
from pytest_bninvariants.state_change.observation import Observation
from pytest_bninvariants.state_change.outside_modules import OutsideRun
from pytest_bninvariants.state_change.tensor_history import TensorHistory
from pytest_bninvariants.state_change.value_patterns import (
    casts_of,
    has_initial_statistics,
    has_initial_values,
    only_became_plain,
    uniform_factor,
)
from pytest_bninvariants.state_change.witness import Witness
from pytest_bninvariants.verdict import Change, Place

IDENTITY = ("gone", "new", "dtype", "shape", "layout")
"""Kinds of change after which a name holds another tensor, or one of another kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEvidence:
    """All that is known about a layer in which something changed.

    Args:
        name: its qualified name.
        activity: what the witness saw of the module that holds the name now.
        is_bn: whether it is a BN layer.
        began_in_training: its mode when the step began.
        had_statistics: whether it had running statistics when the step began.
        type_before: the class name of the module that held the name before; None if none did.
        type_after: the class name of the module that holds it now; None if none does.
        replaced: whether these are two modules, and the first had not normalised anything.
        in_training: its mode now.
        trains: whether one of its own parameters requires a gradient.
        overrides_train: the class name of a module that holds it, or its own, whose `train` is the
            user's own; empty if there is none.
        own_forward: what its forward may have written, if that ran in eager code.
        has_initial_statistics: whether it has the running mean and variance of a new BN layer.
    """

    name: str
    activity: LayerActivity
    is_bn: bool
    began_in_training: bool
    had_statistics: bool
    type_before: str | None
    type_after: str | None
    replaced: bool
    in_training: bool
    trains: bool
    overrides_train: str
    own_forward: OwnForward | None
    has_initial_statistics: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEvidence:
    """All that is known about a change.

    Args:
        change: the change.
        layer: the layer that holds what changed.
        history: what operations did to the tensor.
        factor: the factor by which all of its values shrank, if there is one.
        casts: names of the dtypes to which a cast and back explains its values.
        is_plain: whether each of its values that moved is plain now, so that this is no evidence.
        is_initial: whether it has the values that it has in a new BN layer.
        ran_outside: a module outside the model that ran and shares the tensor's memory.
        loaded_itself_at: where it was last loaded from itself, if nothing changed it after that.
        required_gradient: whether the tensor required a gradient when the step began.
        requires_gradient: whether it requires one now.
        is_buffer: whether the tensor is a buffer.
        compiled_code_ran: whether compiled code ran, whose writes are not seen.
        graph_replayed: whether a device graph was replayed, whose writes are not seen.
        tied: other names of the same tensor that are not watched.
    """

    change: Change
    layer: LayerEvidence
    history: TensorHistory
    factor: float | None = None
    casts: frozenset[str] = frozenset()
    is_plain: bool = False
    is_initial: bool = False
    ran_outside: OutsideRun | None = None
    loaded_itself_at: Place | None = None
    required_gradient: bool = False
    requires_gradient: bool = False
    is_buffer: bool = False
    compiled_code_ran: bool = False
    graph_replayed: bool = False
    tied: tuple[str, ...] = ()

    @property
    def is_by_normalising(self) -> bool:
        """Tell whether normalising with batch statistics can make such a change."""
        if self.change.kind == "values":
            return self.change.of_statistics
        return self.change.kind in ("batch-statistics", "initialised")

    @property
    def normalised(self) -> bool:
        """Tell whether the layer normalised with batch statistics, which explains the change."""
        activity = self.layer.activity
        if not (self.layer.is_bn and self.is_by_normalising):
            return False
        return activity.normalised or activity.own_forwards > 0

    @property
    def replaced(self) -> bool:
        """Tell whether another object holds the name now."""
        if self.layer.replaced or self.change.kind in IDENTITY:
            return True
        if self.change.kind == "initialised":
            return not self.normalised
        return not self.change.same_object and not self.normalised


def names_of(evidence: list[ChangeEvidence]) -> list[str]:
    """Return the names of the layers, each once; the name of the model itself is empty."""
    return list(dict.fromkeys(each.layer.name for each in evidence))


def layers_of(evidence: list[ChangeEvidence]) -> list[LayerEvidence]:
    """Return the layers, each once."""
    return list({each.layer.name: each.layer for each in evidence}.values())


def gather_evidence(
    observation: Observation, changes: Collection[Change]
) -> Iterator[ChangeEvidence]:
    """Yield what an observation tells about each of these changes."""
    yield from _with_sure_casts(list(_evidence_of_each(observation, changes)) if changes else [])


def _with_sure_casts(found: list[ChangeEvidence]) -> Iterator[ChangeEvidence]:
    """Yield evidence that tells of a cast to plain values only beside other values of the layer."""
    sure: dict[str, set[str]] = defaultdict(set)
    for each in found:
        sure[each.layer.name].update(() if each.is_plain else each.casts)
    for each in found:
        yield replace(each, casts=each.casts & sure[each.layer.name]) if each.is_plain else each


def _evidence_of_each(
    observation: Observation, changes: Collection[Change]
) -> Iterator[ChangeEvidence]:
    before, after = observation.before, observation.after
    names = dict.fromkeys(change.layer for change in changes)
    layers = {name: _layer_evidence(name, observation) for name in names}
    kept = {each.watched.name: (key, each) for key, each in before.kept.items()}
    unwatched = _unwatched_names(kept, after)
    for change in changes:
        layer = layers[change.layer]
        key, was = kept.get(change.name, (change.name, None))
        now = after.tensors.get(key)
        if was is None or now is None:
            yield ChangeEvidence(change=change, layer=layer, history=TensorHistory())
            continue
        tied = tuple(unwatched.get(id(now.tensor), ()))
        yield _tensor_evidence(change, layer, was, now.tensor, tied, observation.witness)


def _tensor_evidence(
    change: Change,
    layer: LayerEvidence,
    was: KeptTensor,
    now: Tensor,
    tied: tuple[str, ...],
    witness: Witness,
) -> ChangeEvidence:
    history, casts = witness.operations.history_of(was.watched.tensor), casts_of(was, now)
    return ChangeEvidence(
        change=change,
        layer=layer,
        history=history,
        factor=uniform_factor(was, now) if history.step else None,
        casts=casts,
        is_plain=bool(casts) and only_became_plain(was, now),
        is_initial=layer.is_bn and has_initial_values(now, change.name.rpartition(".")[2]),
        ran_outside=witness.outside.run_of(was.watched.tensor),
        loaded_itself_at=witness.own_loads.place_of_last(was.watched.tensor, now),
        required_gradient=was.requires_grad,
        requires_gradient=now.requires_grad,
        is_buffer=was.watched.kind == "buffer",
        compiled_code_ran=witness.runs.compiled_code_ran,
        graph_replayed=witness.runs.graph_replayed,
        tied=tied,
    )


def _unwatched_names(watched: Collection[str], after: StateAfter) -> dict[int, list[str]]:
    """Return the names of a model's tensors that are not watched, by the tensors' ids."""
    names: dict[int, list[str]] = {}
    for each in after.names.tensors.values():
        if each.name not in watched:
            names.setdefault(id(each.tensor), []).append(each.name)
    return names


def _layer_evidence(name: str, observation: Observation) -> LayerEvidence:
    before, after, witness = observation.before, observation.after, observation.witness
    key = before.names.bare.get(name, after.names.bare.get(name, name))
    old = before.names.modules.get(name)
    new = after.module_at(key, old)
    earlier = after.unless_moved(key, old)
    old_normalised = witness.layers.activity_of(earlier).normalised
    return LayerEvidence(
        name=name,
        activity=witness.layers.activity_under_name(earlier, new),
        is_bn=any(module is not None and is_bn_layer(module) for module in (old, new)),
        began_in_training=witness.layers.began_in_training(old),
        had_statistics=_had_statistics(key, before),
        type_before=None if old is None else type(old).__name__,
        type_after=None if new is None else type(new).__name__,
        replaced=old is not new and not old_normalised,
        in_training=new is not None and new.training,
        trains=new is not None and any(t.requires_grad for _, _, t in own_tensors(new)),
        overrides_train=_overrides_train(name, before),
        own_forward=witness.own_forward_of(new),
        has_initial_statistics=has_initial_statistics(new),
    )


def _overrides_train(name: str, before: StateBefore) -> str:
    """Return the class name of the first module that holds a name and has its own `train`."""
    parts = name.split(".") if name else []
    for count in range(len(parts) + 1):
        kind = type(before.names.modules.get(".".join(parts[:count])))
        if not getattr(kind, "train", nn.Module.train).__module__.startswith("torch."):
            return kind.__name__
    return ""


def _had_statistics(key: str, before: StateBefore) -> bool:
    """Tell whether a watched BN layer had running statistics; True for any other layer."""
    names = (join(key, name) for name in STATISTICS)
    return key not in before.settings or all(name in before.names.tensors for name in names)
