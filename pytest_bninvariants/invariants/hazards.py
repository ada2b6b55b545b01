"""What is worth saying of names and layers besides what changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bninvariants.invariants.selection import STATISTICS, all_tensors, is_bn_layer
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
        if now.tensor.requires_grad and not kept.requires_grad:
            yield Hazard(name=name, text="had requires_grad switched on")
        if name in violated:
            continue
        if now.tensor.requires_grad and now.tensor.is_leaf and now.tensor.grad is not None:
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
    others_have_data = any(
        _has_data(module) and not witness.seen_of(module).normalised
        for module in before.names.modules.values()
    )
    for key, old in before.selection.bn_layers.items():
        layer = after.module(key, old)
        mean, var = (_readable(getattr(layer, name, None)) for name in STATISTICS)
        if mean is None or var is None:
            continue
        name = before.selection.bn_names[key]
        if mean.data_ptr() == var.data_ptr() and mean.numel():
            yield Hazard(name=name, text="running_mean and running_var share memory")
        if not bool(mean.isfinite().all() and var.isfinite().all()):
            yield Hazard(name=name, text="has running statistics that are not finite")
        ran = layer is not None and witness.ran_module(layer)
        if ran and _is_initial(layer) and (_is_meant_to_be_loaded(layer) or others_have_data):
            text = "ran with running_mean 0 and running_var 1, as a new layer has them: "
            yield Hazard(name=name, text=text + "was its checkpoint loaded?")


def _readable(value: object) -> Tensor | None:
    if not isinstance(value, Tensor) or is_lazy(value) or value.is_meta:
        return None
    return value if value.layout == torch.strided else None


def _has_data(module: nn.Module) -> bool:
    """Tell whether a module is a BN layer with statistics of some data."""
    mean = _readable(getattr(module, "running_mean", None)) if is_bn_layer(module) else None
    return mean is not None and not _is_initial(module)


def _is_initial(layer: nn.Module | None) -> bool:
    """Tell whether a layer has the statistics of a new one."""
    mean, var, counter = (
        _readable(getattr(layer, name, None)) for name in (*STATISTICS, "num_batches_tracked")
    )
    counted = counter is not None and bool(counter.any())
    fresh = mean is not None and var is not None and not mean.any() and bool((var == 1).all())
    return fresh and not counted


def _is_meant_to_be_loaded(layer: nn.Module | None) -> bool:
    """Tell whether a layer's weight came from somewhere, or can come from a checkpoint alone."""
    weight = _readable(getattr(layer, "weight", None))
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
