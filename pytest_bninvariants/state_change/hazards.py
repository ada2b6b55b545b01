"""What may go wrong later, though no invariant was broken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import compress

import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.bn_layers import BN_STATE, STATISTICS, holds_weight_as_buffer
from pytest_bninvariants.selection.walk import all_tensors
from pytest_bninvariants.snapshot.addresses import address
from pytest_bninvariants.snapshot.tensor_bytes import join_key, join_values
from pytest_bninvariants.state_change.observation import Observation
from pytest_bninvariants.state_change.value_patterns import has_initial_statistics, readable_values
from pytest_bninvariants.state_change.witness import Witness
from pytest_bninvariants.verdict import Hazard

_HARMLESS_SETTINGS = ("momentum", "track_running_stats")  # another eps is a violation
_ORDERED_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32}
)


def find_hazards(observation: Observation) -> Iterator[Hazard]:
    """Yield what may go wrong later, though the invariant does not forbid it."""
    yield from _identity_hazards(observation)
    yield from _training_hazards(observation)
    yield from _setting_hazards(observation)
    yield from _statistics_hazards(observation)
    yield from _optimizer_hazards(observation)
    yield from observation.witness.unregistered.hazards()
    if observation.scope.judges_normalisation:
        yield from _own_forward_hazards(observation)
    if observation.scope.bn_only and observation.scope.judges_normalisation:
        yield from _idle_layer_hazards(observation)


def _identity_hazards(observation: Observation) -> Iterator[Hazard]:
    """Yield the names that another tensor holds now, and the tensors on another device."""
    kept_tensors, unchanged = observation.before.kept, observation.unchanged
    if observation.after.has_same_objects and len(unchanged) == len(kept_tensors):
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
            text = f"now a {now.kind}, formerly a {watched.kind}; "
            text += "an optimizer may still hold the old tensor"
            yield Hazard(name=watched.name, text=text)
        elif now.tensor is not watched.tensor:
            text = "replaced by a tensor with equal values; an optimizer may still hold the old one"
            yield Hazard(name=watched.name, text=text)
        if now.tensor.device != kept.device:
            yield Hazard(name=watched.name, text=f"moved from {kept.device} to {now.tensor.device}")


def _training_hazards(observation: Observation) -> Iterator[Hazard]:
    """Yield frozen parameters that a later step may train."""
    before, witness = observation.before, observation.witness
    operations, trained = witness.operations, witness.backward_ran or witness.stepped_parameters
    violated = {change.name for change in observation.changes}
    watched, stepped = before.kept.tensors.by_key, operations.saw_any
    required = set(compress(before.kept, before.kept.requires_grad))
    for key, now in observation.after.tensors.by_key.items():
        requires = now.requires_grad
        if not (requires or stepped) or key not in watched:
            continue
        has_gradient = trained and requires and now.is_leaf and now.grad is not None
        if not (stepped or has_gradient or key not in required):
            continue
        kept = before.kept[key]
        name = kept.watched.name
        if requires and key not in required:
            yield Hazard(name=name, text="requires_grad was switched on during the step")
        if name in violated:
            continue
        if has_gradient:
            yield Hazard(name=name, text="requires_grad is True, and .grad is set")
        holder = operations.history_of(kept.watched.tensor).holder
        if holder:
            text = f"in the parameter groups of {holder}, which stepped: weight decay or moments "
            yield Hazard(name=name, text=text + "can move a tensor without a gradient")


def _setting_hazards(observation: Observation) -> Iterator[Hazard]:
    """Yield the BN layers whose type or settings changed."""
    before, after = observation.before, observation.after
    swapped = {change.layer for change in observation.changes if not change.same_object}
    for key, settings in before.settings.items():
        name, old = before.selection.bn_names[key], before.selection.bn_layers[key]
        new, now = after.bn_layers[key], after.settings.get(key)
        if now is None or (new is old and (now is settings or now == settings)):
            continue
        if type(old) is not type(new) and name not in swapped:
            text = f"type changed from {type(old).__name__} to {type(new).__name__}"
            yield Hazard(name=name, text=text)
        for setting in _HARMLESS_SETTINGS:
            value = now.get(setting, settings.get(setting))
            if setting in settings and value != settings[setting]:
                yield Hazard(name=name, text=f"{setting} {settings[setting]} -> {value}")


def _statistics_hazards(observation: Observation) -> Iterator[Hazard]:
    """Yield watched BN layers whose running statistics cannot be those of any data."""
    before, after, witness = observation.before, observation.after, observation.witness
    initial = []
    ordinary = _finite_and_unshared(observation) if after.bn_layers else set()
    for key, layer in after.bn_layers.items():
        ran = witness.was_called(layer)
        if not ran and f"{key}.running_mean" in ordinary and f"{key}.running_var" in ordinary:
            continue
        mean, var = (readable_values(layer, name) for name in STATISTICS)
        if mean is None or var is None:
            continue
        name = before.selection.bn_names[key]
        if mean.numel() and address(mean) == address(var) != 0:
            yield Hazard(name=name, text="running_mean and running_var share memory")
        if not _all_finite([mean, var]):
            yield Hazard(name=name, text="running statistics are not finite")
        if ran and _is_initial(layer):
            initial.append((name, layer))
    others_have_data = cache(lambda: _others_have_data(observation))
    for name, layer in initial:
        if _should_be_loaded(layer, witness) or (not _trains(layer) and others_have_data()):
            text = "ran with running_mean 0 and running_var 1, like a new layer: "
            yield Hazard(name=name, text=text + "was the checkpoint loaded?")


def _finite_and_unshared(observation: Observation) -> set[str]:
    """Return the keys of unchanged, finite tensors that share no memory, as far as buckets tell."""
    buckets = [
        b for b in observation.before.kept.buckets if b.dtype.is_floating_point and not b.is_large
    ]
    places = [place for bucket in buckets for place in bucket.addresses]
    sums = [bucket.flat.view(bucket.dtype).sum() for bucket in buckets]
    if len(set(places)) < len(places) or not _all_finite(sums):
        return set()
    return {key for bucket in buckets for key in bucket.keys if key in observation.unchanged}


def _others_have_data(observation: Observation) -> bool:
    """Tell whether any layer has statistics of data from before this step."""
    before, recorder = observation.before, observation.witness.layers
    named = (before.names.modules[name] for name in before.selection.bn_names.values())
    layers = [layer for layer in named if not recorder.activity_of(layer).normalised]
    for some in (layers[:1], layers[1:]):  # the first layer alone mostly decides
        for name, initial in zip(BN_STATE, (0, 1, 0), strict=True):
            values = _joined(readable_values(layer, name) for layer in some)
            if any(bool((_ends(flat) != initial).any()) for flat in values):
                return True
    return False


def _all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Tell whether all values are finite."""
    return all(math.isfinite(end) for flat in _joined(tensors) for end in _ends(flat).tolist())


def _ends(flat: Tensor) -> Tensor:
    """Return the smallest and the largest value, or all values of an unordered dtype.

    Checking these is as good as checking all, and faster: both are NaN if any value is.
    """
    return (
        torch.stack(torch.aminmax(flat)) if flat.numel() and flat.dtype in _ORDERED_DTYPES else flat
    )


def _joined(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Join the values of tensors into as few tensors as possible, to synchronise seldom."""
    present = [tensor for tensor in tensors if tensor is not None]
    with suppress(RuntimeError):  # mostly, all can be joined
        return [join_values(present)] if present else []
    groups: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in present:
        groups.setdefault(join_key(tensor), []).append(tensor)
    return list(map(join_values, groups.values()))


def _is_initial(layer: nn.Module | None) -> bool:
    """Tell whether a layer has the statistics of a new one."""
    counter = readable_values(layer, "num_batches_tracked")
    return has_initial_statistics(layer) and (counter is None or not counter.any())


def _trains(layer: nn.Module | None) -> bool:
    """Tell whether a layer has parameters that require a gradient, as a new head's do."""
    own = () if layer is None else layer._parameters.values()
    return any(parameter is not None and parameter.requires_grad for parameter in own)


def _should_be_loaded(layer: nn.Module | None, witness: Witness) -> bool:
    """Tell whether a layer's weight came from a checkpoint, or can come only from one."""
    weight = readable_values(layer, "weight")
    if weight is None or layer is None or id(weight) in witness.stepped_parameters:
        return False
    ends = _ends(weight.flatten())
    return "weight" in layer._buffers or bool((ends != ends[:1]).any())  # a new weight is constant


def _optimizer_hazards(observation: Observation) -> Iterator[Hazard]:
    """Yield trainable parameters that are in no optimizer that stepped, if any of the model are."""
    model, stepped = observation.witness.model, observation.witness.stepped_parameters
    if not stepped or not any(id(tensor) in stepped for tensor in all_tensors(model)):
        return
    held = stepped.union(map(id, observation.before.kept.tensors.tensors))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            text = "in no optimizer that stepped, although requires_grad is True: "
            yield Hazard(name=name, text=text + "add to an optimizer, or freeze")


def _own_forward_hazards(observation: Observation) -> Iterator[Hazard]:
    """Yield the layers in training mode whose own forward may have used batch statistics."""
    if not observation.witness.layers.saw_own_outputs:
        return
    violated = {change.layer for change in observation.changes}
    for key, layer in observation.before.selection.bn_layers.items():
        name = observation.before.selection.bn_names[key]
        output = observation.witness.layers.activity_of(layer).outputs.get(True)
        if output == "unknown" and name not in violated and not holds_weight_as_buffer(layer):
            text = "ran in training mode with its own forward, and its output does not tell "
            text += "whether it used batch statistics: call .eval() on it, to be sure"
            yield Hazard(name=name, text=text)


def _idle_layer_hazards(observation: Observation) -> Iterator[Hazard]:
    """Yield the BN layers if no forward used the model although an optimizer stepped."""
    runs, selection = observation.witness.runs, observation.before.selection
    if runs.optimizer_stepped and not runs.saw_use:
        for name in map(selection.bn_names.__getitem__, selection.bn_layers):
            text = "did not run, although an optimizer stepped: did another model run?"
            yield Hazard(name=name, text=text)
