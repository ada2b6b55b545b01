"""A model with BN layers and others at several depths, and what a guard watches of it."""

from __future__ import annotations

from torch import nn

from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select

STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def deep() -> nn.Module:
    """A model with the names that patterns confuse: layer1 and layer10, bn and bn1."""
    model = nn.Module()
    for path, layer in {
        "stem.conv": nn.Conv1d(1, 2, 1),
        "stem.bn": nn.BatchNorm1d(2),
        "layer1.0.bn1": nn.BatchNorm1d(2),
        "layer1.1.bn1": nn.BatchNorm1d(2),
        "layer10.0.bn1": nn.BatchNorm1d(2),
        "head.bn": nn.BatchNorm1d(2),
        "head.fc": nn.Linear(2, 1),
    }.items():
        parent = model
        *parents, name = path.split(".")
        for part in parents:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, layer)
    return model


BN = {"stem.bn", "layer1.0.bn1", "layer1.1.bn1", "layer10.0.bn1", "head.bn"}


def tensors(model: nn.Module, *modules: str, **options: object) -> set[str]:
    selection = select(model, Scope(modules=modules, **options))  # type: ignore[arg-type]
    return {watched.name for watched in selection.tensors.values()}


def layers(model: nn.Module, *modules: str, **options: object) -> set[str]:
    return {name.rpartition(".")[0] for name in tensors(model, *modules, **options)}
