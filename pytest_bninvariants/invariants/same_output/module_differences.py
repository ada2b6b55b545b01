"""Describe the differences between two modules that may make their outputs differ."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pytest_bninvariants.diagnosis.wording import clauses, name_list
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.submodules import modules_by_name
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.state_change.layer_settings import read_settings
from pytest_bninvariants.torch_internals.isolation import undisturbed


def describe_differences(one: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Return which layers, settings and tensors of two modules differ, in words.

    Args:
        one: a module.
        other: the module that was made from it.
    """
    with undisturbed():
        texts = [*_types(one, other), *_settings(one, other), *_tensors(one, other)]
    return tuple(texts) or ("their layers, settings, parameters and buffers agree",)


def _types(one: nn.Module, other: nn.Module) -> Iterator[str]:
    old, new = modules_by_name(one), modules_by_name(other)
    swaps: dict[str, list[str]] = {}
    for name in old:
        if name == "" or name not in new:
            continue
        before, after = type(old[name]).__name__, type(new[name]).__name__
        if before != after:
            swaps.setdefault(f"{before} -> {after}", []).append(name)
    for swap, names in swaps.items():
        yield f"{name_list(names)}: {swap}"
    gone = [name for name in old if name not in new]
    added = [name for name in new if name not in old]
    if gone:
        yield f"gone: {name_list(gone)}"
    if added:
        yield f"new: {name_list(added)}"


def _settings(one: nn.Module, other: nn.Module) -> Iterator[str]:
    old, new = modules_by_name(one), modules_by_name(other)
    changed: dict[str, list[str]] = {}
    for name, layer in old.items():
        if name in new and is_bn_layer(layer) and is_bn_layer(new[name]):
            before, after = (read_settings(each).get("eps") for each in (layer, new[name]))
            if None not in (before, after) and before != after:
                changed.setdefault(f"eps {before} -> {after}", []).append(name)
    for text, names in changed.items():
        yield f"{name_list(names)}: {text}"


def _tensors(one: nn.Module, other: nn.Module) -> Iterator[str]:
    now = ModelNames.from_model(other).tensors
    kept = take_snapshot(ModelNames.from_model(one).tensors)
    changes = changes_since(kept, now, [key for key in now if key not in kept])
    if changes:
        listed = clauses([f"{change.name} {change.text}" for change in changes])
        yield f"{len(changes)} of {len(kept.keys() | now.keys())} tensors differ: {listed}"
