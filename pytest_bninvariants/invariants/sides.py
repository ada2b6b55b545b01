"""A model before and after a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pytest_bninvariants.invariants import snapshot
from pytest_bninvariants.invariants.selection import (
    Names,
    Scope,
    Selection,
    Watched,
    has_stored_statistics,
    layout_of,
    select,
)
from pytest_bninvariants.invariants.undisturbed import undisturbed

SETTINGS = ("momentum", "track_running_stats")


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """A model's watched state before the step.

    Args:
        selection: what is watched.
        kept: the watched tensors' bytes.
        settings: `eps`, `momentum` and `track_running_stats` of each watched BN layer.
    """

    selection: Selection
    kept: dict[str, snapshot.Kept]
    settings: dict[str, dict[str, object]]

    @property
    def names(self) -> Names:
        """Return the model's modules and tensors by name."""
        return self.selection.names

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
    with undisturbed():
        selection = select(model, scope)
        return Before(
            selection=selection,
            kept=snapshot.take(selection.tensors),
            settings={key: settings_of(layer) for key, layer in selection.bn_layers.items()},
        )


def settings_of(layer: nn.Module) -> dict[str, object]:
    """Return a layer's settings as plain values, and whether it stores statistics."""
    names = ("eps", *SETTINGS)
    found = {name: plain(getattr(layer, name)) for name in names if hasattr(layer, name)}
    return found | {"stores": has_stored_statistics(layer)}


def plain(value: object) -> object:
    """Return a setting as a value that stays and can be compared: users assign tensors too."""
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist()
    return value if value == value else "nan"


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """A model after a step.

    Args:
        modules: the modules that hold each name, without wrapper prefixes.
        selection: what the scope covers now.
    """

    modules: Mapping[str, list[nn.Module]]
    selection: Selection

    @property
    def names(self) -> Names:
        """Return the model's modules by name."""
        return self.selection.names

    @property
    def tensors(self) -> Mapping[str, Watched]:
        """Return all of the model's tensors by key."""
        return self.names.tensors

    def module(self, key: str, before: nn.Module | None) -> nn.Module | None:
        """Return what holds a name now; of a wrapper and what it wraps, the one that did before."""
        holders = self.modules.get(key, ())
        if any(holder is before for holder in holders):
            return before
        return holders[-1] if holders else None

    @classmethod
    def of(cls, model: nn.Module, scope: Scope, before: Selection) -> After:
        """Read it off a model; where each name holds what it did before, that is known."""
        same = layout_of(model) == before.layout
        selection = before if same else select(model, scope, complain=False)
        modules: dict[str, list[nn.Module]] = {}
        for name, module in selection.names.modules.items():
            modules.setdefault(selection.names.bare[name], []).append(module)
        return cls(modules=modules, selection=selection)
