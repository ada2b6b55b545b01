"""What is worth saying of names and layers besides what changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bninvariants.invariants.selection import BN_STATE, STATISTICS, all_tensors, is_bn_layer
from pytest_bninvariants.invariants.sides import SETTINGS, After, Before, plain
from pytest_bninvariants.invariants.verdict import Change, Hazard
from pytest_bninvariants.invariants.witness import Witness


def hazards(
    model: nn.Module, before: Before, after: After, changes: Iterable[Change], witness: Witness
) -> Iterator[Hazard]:
    """Yield what may go wrong later, though the invariant does not forbid it."""
    violated = {change.name for change in changes}
    swapped = {change.layer for change in changes if not change.same_object}
    yield from _of_identity(before, after, violated)
    yield from _of_training(before, after, violated, witness)
    yield from _of_settings(before, after, swapped)
    yield from _of_statistics(before, after, witness)
    yield from _of_optimizers(model, before, witness)


def _of_identity(before: Before, after: After, violated: set[str]) -> Iterator[Hazard]:
    """Yield names that another tensor or another place in memory holds."""
    tensors = after.tensors
    for key, kept in before.kept.items():
        watched, now = kept.watched, tensors.get(key)
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


def _of_training(
    before: Before, after: After, violated: set[str], witness: Witness
) -> Iterator[Hazard]:
    """Yield frozen parameters that are on their way to be trained."""
    tensors = after.tensors
    for key, kept in before.kept.items():
        now, name = tensors.get(key), kept.watched.name
        if now is None:
            continue
        asks = now.tensor.requires_grad
        if asks and not kept.requires_grad:
            yield Hazard(name=name, text="had requires_grad switched on")
        if name in violated:
            continue
        if asks and now.tensor.is_leaf and now.tensor.grad is not None:
            yield Hazard(name=name, text="has requires_grad=True and a gradient")
        holder = witness.done_to(kept.watched.tensor).held_by
        if holder:
            text = f"is in the groups of {holder}, which stepped: its weight decay and moments "
            yield Hazard(name=name, text=text + "may move it")


def _of_settings(before: Before, after: After, swapped: set[str]) -> Iterator[Hazard]:
    """Yield layers of another type, or with another setting."""
    for key, settings in before.settings.items():
        name, old = before.selection.bn_names[key], before.selection.bn_layers[key]
        new = after.module(key, old)
        if new is None:
            continue
        if type(old) is not type(new) and name not in swapped:
            yield Hazard(
                name=name, text=f"was {type(old).__name__} and is {type(new).__name__} now"
            )
        for setting in SETTINGS:
            value = plain(getattr(new, setting, settings.get(setting)))
            if setting in settings and value != settings[setting]:
                yield Hazard(name=name, text=f"{setting} {settings[setting]} -> {value}")


def _of_statistics(before: Before, after: After, witness: Witness) -> Iterator[Hazard]:
    """Yield watched BN layers whose statistics are not those of any data."""
    read: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {key: after.module(key, old) for key, old in before.selection.bn_layers.items()}
    for key, layer in layers.items():
        mean, var = (_readable(layer, name) for name in STATISTICS)
        if mean is not None and var is not None:
            read[key] = mean, var
    finite = _all_finite([each for pair in read.values() for each in pair])
    for key, (mean, var) in read.items():
        name, layer = before.selection.bn_names[key], layers[key]
        if mean.data_ptr() == var.data_ptr() and mean.numel():
            yield Hazard(name=name, text="running_mean and running_var share memory")
        if not finite and not _all_finite([mean, var]):
            yield Hazard(name=name, text="has running statistics that are not finite")
        if (
            layer is not None
            and witness.ran_module(layer)
            and _is_initial(layer)
            and (_is_meant_to_be_loaded(layer) or _others_have_data(before, witness))
        ):
            text = "ran with running_mean 0 and running_var 1, as a new layer has them: "
            yield Hazard(name=name, text=text + "was its checkpoint loaded?")


def _others_have_data(before: Before, witness: Witness) -> bool:
    """Tell whether a layer has statistics of some data, other than of this step's."""
    layers = [
        module
        for module in before.names.modules.values()
        if is_bn_layer(module) and not witness.seen_of(module).normalised
    ]
    means, variances, counters = (
        _joined(_readable(each, name) for each in layers) for name in BN_STATE
    )
    moved = any(bool(flat.any()) for flat in [*means, *counters])
    return moved or any(bool((flat != 1).any()) for flat in variances)


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether all values are finite."""
    return all(bool(flat.isfinite().all()) for flat in _joined(tensors))


def _joined(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Return the values of tensors as few tensors, so that each device is asked once."""
    sorts: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None:
            flat = tensor if tensor.dim() == 1 else tensor.reshape(-1)
            sorts.setdefault((tensor.dtype, tensor.device), []).append(flat)
    return [torch.cat(same) for same in sorts.values()]


def _readable(layer: nn.Module | None, name: str) -> Tensor | None:
    """Return one of a layer's tensors, if its values can be read."""
    buffers = {} if layer is None else layer._buffers  # looked at first: asking a module is slow
    value = buffers[name] if name in buffers else getattr(layer, name, None)
    if not isinstance(value, Tensor) or value.is_meta or is_lazy(value):
        return None
    return value if value.layout == torch.strided else None


def _is_initial(layer: nn.Module | None) -> bool:
    """Tell whether a layer has the statistics of a new one."""
    mean, var, counter = (_readable(layer, name) for name in BN_STATE)
    counted = counter is not None and bool(counter.any())
    fresh = mean is not None and var is not None and not mean.any() and bool((var == 1).all())
    return fresh and not counted


def _is_meant_to_be_loaded(layer: nn.Module | None) -> bool:
    """Tell whether a layer's weight came from somewhere, or can come from a checkpoint alone."""
    weight = _readable(layer, "weight")
    if weight is None or layer is None:
        return False
    return "weight" in layer._buffers or not bool((weight == 1).all())


def _of_optimizers(model: nn.Module, before: Before, witness: Witness) -> Iterator[Hazard]:
    """Yield trainable parameters that no optimizer holds, of those that stepped for this model."""
    held = witness.stepped_for
    if not held or not any(id(tensor) in held for tensor in all_tensors(model)):
        return
    watched = {id(kept.watched.tensor) for kept in before.kept.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in watched | held:
            yield Hazard(name=name, text="has requires_grad=True and is in no optimizer's groups")
