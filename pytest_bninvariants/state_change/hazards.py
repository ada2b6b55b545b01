"""What may go wrong later, though no invariant was broken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.bn_layers import BN_STATE, STATISTICS
from pytest_bninvariants.selection.walk import all_tensors
from pytest_bninvariants.snapshot.addresses import address
from pytest_bninvariants.snapshot.tensor_bytes import dense_values, join_key, join_values
from pytest_bninvariants.state_change.observation import Observation
from pytest_bninvariants.state_change.witness import Witness
from pytest_bninvariants.verdict import Hazard

_SETTINGS = ("momentum", "track_running_stats")  # another eps is a violation

_ORDERED = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32}
)


def find_hazards(observation: Observation) -> Iterator[Hazard]:
    """Yield what may go wrong later, though the invariant does not forbid it."""
    yield from _of_identity(observation)
    yield from _of_training(observation)
    yield from _of_settings(observation)
    yield from _of_statistics(observation)
    yield from _of_optimizers(observation)
    if observation.scope.bn_only and observation.scope.judges_normalisation:
        yield from _of_idleness(observation)


def _of_identity(observation: Observation) -> Iterator[Hazard]:
    """Yield names that another tensor or another place in memory holds."""
    kept_tensors, unchanged = observation.before.kept, observation.unchanged
    if observation.after.is_like_before and len(unchanged) == len(kept_tensors):
        return
    violated = {change.name for change in observation.changes}
    tensors = observation.after.tensors
    for key, kept in kept_tensors.items():
        watched, now = kept.watched, tensors.get(key)
        if now is watched and key in unchanged:
            continue
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


def _of_training(observation: Observation) -> Iterator[Hazard]:
    """Yield frozen parameters that are on their way to be trained."""
    before, operations = observation.before, observation.witness.operations
    violated = {change.name for change in observation.changes}
    held, stepped = before.kept.tensors.by_key, operations.saw_any
    required = {
        key for key, asks in zip(before.kept, before.kept.requires_grad, strict=True) if asks
    }
    for key, now in observation.after.tensors.by_key.items():
        requires = now.requires_grad
        if not (requires or stepped) or key not in held:
            continue
        has_gradient = requires and now.is_leaf and now.grad is not None
        if not (stepped or has_gradient or key not in required):
            continue
        kept = before.kept[key]
        name = kept.watched.name
        if requires and key not in required:
            yield Hazard(name=name, text="had requires_grad switched on")
        if name in violated:
            continue
        if has_gradient:
            yield Hazard(name=name, text="has requires_grad=True and a gradient")
        holder = operations.history_of(kept.watched.tensor).holder
        if holder:
            text = f"is in the groups of {holder}, which stepped: its weight decay and moments "
            yield Hazard(name=name, text=text + "may move it")


def _of_settings(observation: Observation) -> Iterator[Hazard]:
    """Yield layers of another type, or with another setting."""
    before, after = observation.before, observation.after
    swapped = {change.layer for change in observation.changes if not change.same_object}
    for key, settings in before.settings.items():
        name, old = before.selection.bn_names[key], before.selection.bn_layers[key]
        new, now = after.bn_layers[key], after.settings.get(key)
        if now is None or (new is old and (now is settings or now == settings)):
            continue
        if type(old) is not type(new) and name not in swapped:
            text = f"was {type(old).__name__} and is {type(new).__name__} now"
            yield Hazard(name=name, text=text)
        for setting in _SETTINGS:
            value = now.get(setting, settings.get(setting))
            if setting in settings and value != settings[setting]:
                yield Hazard(name=name, text=f"{setting} {settings[setting]} -> {value}")


def _of_statistics(observation: Observation) -> Iterator[Hazard]:
    """Yield watched BN layers whose statistics are not those of any data."""
    before, after, witness = observation.before, observation.after, observation.witness
    initial = []
    ordinary = _ordinary(observation) if after.bn_layers else set()
    for key, layer in after.bn_layers.items():
        ran = witness.was_called(layer)
        if not ran and f"{key}.running_mean" in ordinary and f"{key}.running_var" in ordinary:
            continue
        mean, var = (_readable(layer, name) for name in STATISTICS)
        if mean is None or var is None:
            continue
        name = before.selection.bn_names[key]
        if mean.numel() and address(mean) == address(var) != 0:
            yield Hazard(name=name, text="running_mean and running_var share memory")
        if not _all_finite([mean, var]):
            yield Hazard(name=name, text="has running statistics that are not finite")
        if ran and _is_initial(layer):
            initial.append((name, layer))
    others_have_data = cache(lambda: _others_have_data(observation))
    for name, layer in initial:
        if _is_meant_to_be_loaded(layer, witness) or (not _trains(layer) and others_have_data()):
            text = "ran with running_mean 0 and running_var 1, as a new layer has them: "
            yield Hazard(name=name, text=text + "was its checkpoint loaded?")


def _ordinary(observation: Observation) -> set[str]:
    """Return keys of tensors that have the content that was kept, which is finite, in memory that
    they do not share: what is kept together is looked at together.
    """
    buckets = [
        b for b in observation.before.kept.buckets if b.dtype.is_floating_point and not b.is_large
    ]
    places = [place for bucket in buckets for place in bucket.addresses]
    sums = [bucket.flat.view(bucket.dtype).sum() for bucket in buckets]
    if len(set(places)) < len(places) or not _all_finite(sums):
        return set()
    return {key for bucket in buckets for key in bucket.keys if key in observation.unchanged}


def _others_have_data(observation: Observation) -> bool:
    """Tell whether a layer has statistics of some data, other than of this step's."""
    before, recorder = observation.before, observation.witness.layers
    named = (before.names.modules[name] for name in before.selection.bn_names.values())
    layers = [layer for layer in named if not recorder.activity_of(layer).normalised]
    for some in (layers[:1], layers[1:]):  # mostly the first tells
        for name, initial in zip(BN_STATE, (0, 1, 0), strict=True):
            values = _joined(_readable(layer, name) for layer in some)
            if any(bool((_ends(flat) != initial).any()) for flat in values):
                return True
    return False


def _all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Tell whether all values are finite."""
    return all(math.isfinite(end) for flat in _joined(tensors) for end in _ends(flat).tolist())


def _ends(flat: Tensor) -> Tensor:
    """Return the least and the greatest of many values, which tell as much of all in less time.

    Both are NaN where any value is.
    """
    return torch.stack(torch.aminmax(flat)) if flat.numel() and flat.dtype in _ORDERED else flat


def _joined(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Return the values of tensors as few tensors, so that each device is asked once."""
    there = [tensor for tensor in tensors if tensor is not None]
    with suppress(RuntimeError):  # they mostly are of one sort
        return [join_values(there)] if there else []
    sorts: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in there:
        sorts.setdefault(join_key(tensor), []).append(tensor)
    return list(map(join_values, sorts.values()))


def _readable(layer: nn.Module | None, name: str) -> Tensor | None:
    """Return one of a layer's tensors, if its values can be read."""
    buffers = {} if layer is None else layer._buffers  # looked at first: asking a module is slow
    value = buffers[name] if name in buffers else getattr(layer, name, None)
    return dense_values(value) if isinstance(value, Tensor) else None


def _is_initial(layer: nn.Module | None) -> bool:
    """Tell whether a layer has the statistics of a new one."""
    mean, var, counter = (_readable(layer, name) for name in BN_STATE)
    counted = counter is not None and bool(counter.any())
    fresh = mean is not None and var is not None and not mean.any() and bool((var == 1).all())
    return fresh and not counted


def _trains(layer: nn.Module | None) -> bool:
    """Tell whether a layer has parameters that require a gradient, as a new head's do."""
    own = () if layer is None else layer._parameters.values()
    return any(parameter is not None and parameter.requires_grad for parameter in own)


def _is_meant_to_be_loaded(layer: nn.Module | None, witness: Witness) -> bool:
    """Tell whether a layer's weight came from somewhere, or can come from a checkpoint alone."""
    weight = _readable(layer, "weight")
    if weight is None or layer is None or id(weight) in witness.stepped_parameters:
        return False
    ends = _ends(weight.flatten())
    return "weight" in layer._buffers or bool((ends != ends[:1]).any())  # new ones are constant


def _of_optimizers(observation: Observation) -> Iterator[Hazard]:
    """Yield trainable parameters that no optimizer holds, of those that stepped for this model."""
    model, stepped = observation.witness.model, observation.witness.stepped_parameters
    if not stepped or not any(id(tensor) in stepped for tensor in all_tensors(model)):
        return
    watched = {id(kept.watched.tensor) for kept in observation.before.kept.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in watched | stepped:
            text = "requires_grad=True, but in no optimizer that stepped: add to one, or freeze"
            yield Hazard(name=name, text=text)


def _of_idleness(observation: Observation) -> Iterator[Hazard]:
    """Yield BN layers that no forward used, though an optimizer stepped as if one had."""
    runs, selection = observation.witness.runs, observation.before.selection
    if runs.optimizer_stepped and not runs.saw_use:
        for name in map(selection.bn_names.__getitem__, selection.bn_layers):
            text = "did not run, though an optimizer stepped: was it this very model that ran?"
            yield Hazard(name=name, text=text)
