"""Read a model's watched state before and after a step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.model_tree import ModelTree
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.selection.selection_plan import Selection
from pytest_bninvariants.selection.tensor_table import TensorTable, WatchedTensor
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.extra_state.compare import ExtraValue
from pytest_bninvariants.snapshot.extra_state.read import read_extra_state
from pytest_bninvariants.snapshot.reads.layer_drift import with_drift
from pytest_bninvariants.snapshot.snapshot import Snapshot, take_snapshot
from pytest_bninvariants.state_change.layer_settings import read_settings
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBefore:
    """A model's watched state before the step.

    Args:
        selection: what is watched.
        kept: the watched tensors' bytes.
        settings: `eps`, `momentum` and `track_running_stats` of each watched BN layer.
        extra: what the model keeps beside its parameters and buffers.
    """

    selection: Selection
    kept: Snapshot
    settings: dict[str, dict[str, object]]
    extra: dict[str, ExtraValue]

    @property
    def names(self) -> ModelNames:
        """Return the model's modules and tensors by name."""
        return self.selection.names

    @property
    def layers(self) -> set[str]:
        """Return the names of all watched layers."""
        bn_layers = {self.selection.bn_names[key] for key in self.selection.bn_layers}
        return bn_layers.union(self.kept.tensors.columns.layers)

    @property
    def eps(self) -> dict[str, object]:
        """Return what each watched BN layer added to its variance, by the layer's name."""
        settings = self.settings.items()
        return {self.selection.bn_names[key]: each.get("eps") for key, each in settings}

    def changes(self, now: Selection) -> list[Change]:
        """Return how the watched tensors differ from those that a selection covers now."""
        new = [key for key in now.tensors if key not in self.names.tensors]
        with undisturbed():
            return self.changes_to(now.names.tensors, new)

    def changes_to(
        self,
        now: Mapping[str, WatchedTensor],
        new: Iterable[str],
        unchanged: Collection[str] | None = None,
    ) -> list[Change]:
        """Return the changes to tensors as they are now; arguments as `changes_since`.

        The caller must hold `undisturbed()`.
        """
        changes = changes_since(self.kept, now, new, unchanged)
        return with_drift(changes, self.kept, now, self.eps) if changes else []


def read_state_before(
    model: nn.Module, scope: Scope, prefer_exact: Collection[str] = ()
) -> StateBefore:
    """Take a snapshot of what a scope covers in a model.

    Args:
        model: the model.
        scope: what is watched.
        prefer_exact: keys to keep exactly, not as fingerprints, as far as the budget allows.

    Raises:
        GateError: if there is nothing to watch, or it cannot be compared.
    """
    with undisturbed():
        selection = select(model, scope)
        return StateBefore(
            selection=selection,
            kept=take_snapshot(selection.tensors, prefer_exact=prefer_exact),
            settings={key: read_settings(layer) for key, layer in selection.bn_layers.items()},
            extra=read_extra_state(selection, scope),
        )


@dataclass(frozen=True, kw_only=True)
class StateAfter:
    """A model after a step.

    Args:
        selection: what the scope covers now.
        before: what it covered before; the same object if `has_same_objects`.
    """

    selection: Selection
    before: Selection

    @property
    def names(self) -> ModelNames:
        """Return the model's modules by name."""
        return self.selection.names

    @property
    def tensors(self) -> TensorTable:
        """Return the model's tensors by key, or the watched ones alone if `has_same_objects`."""
        return self.before.tensors if self.has_same_objects else self.names.tensors

    @property
    def has_same_objects(self) -> bool:
        """Tell whether each name holds the same object as before."""
        return self.selection is self.before

    @property
    def new_keys(self) -> list[str]:
        """Return the keys of tensors that the scope covers now and that did not exist before."""
        covered = () if self.has_same_objects else self.selection.tensors
        return [key for key in covered if key not in self.before.names.tensors]

    @cached_property
    def bn_layers(self) -> dict[str, nn.Module | None]:
        """Return the modules that now hold the names of the watched BN layers."""
        return {key: self.module_at(key, old) for key, old in self.before.bn_layers.items()}

    @cached_property
    def settings(self) -> dict[str, dict[str, object]]:
        """Return the settings of these modules, of those that exist."""
        layers = self.bn_layers.items()
        return {key: read_settings(layer) for key, layer in layers if layer is not None}

    def module_at(self, key: str, before: nn.Module | None) -> nn.Module | None:
        """Return the module that holds a name now.

        A wrapper and its module share a name: of these, return the one that held it before.
        """
        if self.has_same_objects and before is not None:
            return before
        holders = self._holders.get(key, ())
        if any(holder is before for holder in holders):
            return before
        return holders[-1] if holders else None

    def unless_moved(self, key: str, before: nn.Module | None) -> nn.Module | None:
        """Return the module that held a name, but None if it has only other names now.

        What it did under those may not be what happened under this one.
        """
        if self.has_same_objects or before is self.module_at(key, before):
            return before
        return None if any(before is each for each in self.names.modules.values()) else before

    @cached_property
    def _holders(self) -> dict[str, list[nn.Module]]:
        holders: dict[str, list[nn.Module]] = {}
        for name, module in self.names.modules.items():
            holders.setdefault(self.names.bare[name], []).append(module)
        return holders


def read_state_after(model: nn.Module, scope: Scope, before: Selection) -> StateAfter:
    """Find what a scope covers now; reuse the selection from before if all objects are the same."""
    is_same = ModelTree(model).matches(before.tree)
    selection = before if is_same else select(model, scope, complain=False)
    return StateAfter(selection=selection, before=before)
