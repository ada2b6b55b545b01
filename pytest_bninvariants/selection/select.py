"""Find what a scope covers in a model, or say why it covers nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from pytest_bninvariants import run_config
from pytest_bninvariants.diagnosis.did_you_mean import did_you_mean_name
from pytest_bninvariants.diagnosis.wording import quoted_list
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection import bn_layer_types, selection_plan
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.selection.model_names import ModelNames, covers
from pytest_bninvariants.selection.model_tree import ModelTree
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.selection_plan import Selection
from pytest_bninvariants.selection.tensor_table import TensorTable, WatchedTensor
from pytest_bninvariants.selection.walk import named_modules

EXTRA_STATE = "_extra_state"
"""The name in a state_dict of what `get_extra_state()` returns."""


def select(model: nn.Module, scope: Scope, *, complain: bool = True) -> Selection:
    """Find what a scope covers in a model.

    Args:
        model: the model.
        scope: what to watch.
        complain: raise if a pattern matches nothing; after the step, names may be gone.

    Raises:
        GateError: if a pattern matches nothing that can be watched, or everything is excluded.
    """
    tree = ModelTree(model)
    planned = selection_plan.find_planned(scope, tree)
    if planned is not None:
        return planned
    candidates = _Candidates.from_names(ModelNames.from_model(model), scope)
    covered = candidates.covered_by(scope.modules or ("",), complain=complain)
    covered = candidates.without(covered, scope.exclude, complain=complain)
    selection = candidates.selection(covered, tree)
    if complain:
        selection_plan.remember_plan(scope, selection)
    return selection


class _Coverage(NamedTuple):
    """The keys of the tensors and of the modules that patterns cover."""

    tensors: set[str]
    modules: set[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """The modules and tensors that patterns may select, by key.

    Args:
        scope: the scope.
        names: the model's names.
        modules: all modules of the model.
        tensors: the tensors of the kinds that are watched.
        bn_names: the qualified names of all BN layers.
        bn_layers: all BN layers.
    """

    scope: Scope
    names: ModelNames
    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, WatchedTensor]
    bn_names: Mapping[str, str]
    bn_layers: Mapping[str, nn.Module]

    @classmethod
    def from_names(cls, names: ModelNames, scope: Scope) -> _Candidates:
        all_bn_names = [name for name, module in names.modules.items() if is_bn_layer(module)]
        owners = _state_owners(names, all_bn_names) if scope.bn_only else names.modules.keys()
        kinds = {"parameter"} if scope.parameters else set()
        kinds |= {"buffer"} if scope.buffers else set()
        bn_names = {names.bare[name]: name for name in all_bn_names}
        return cls(
            scope=scope,
            names=names,
            modules=names.by_bare_name,
            tensors={
                key: watched
                for key, watched in names.tensors.items()
                if watched.layer in owners and watched.kind in kinds
            },
            bn_names=bn_names,
            bn_layers={key: names.modules[name] for key, name in bn_names.items()},
        )

    def covered_by(self, patterns: Iterable[str], *, complain: bool) -> _Coverage:
        """Return what any of the patterns covers."""
        covered = _Coverage(set(), set())
        for pattern in patterns:
            added = self._matches(pattern)
            if complain and not self._watches(added):
                raise GateError(_nothing_to_watch(pattern, self))
            covered = _Coverage(covered.tensors | added.tensors, covered.modules | added.modules)
        return covered

    def without(self, covered: _Coverage, exclude: Iterable[str], *, complain: bool) -> _Coverage:
        """Return what is covered and not excluded."""
        for pattern in exclude:
            tensors, modules = self._matches(pattern)
            found = tensors & covered.tensors or modules & covered.modules
            if complain and not (found or pattern.endswith(EXTRA_STATE)):
                raise GateError(_nothing_to_exclude(pattern, self, covered.tensors))
            covered = _Coverage(covered.tensors - tensors, covered.modules - modules)
        if complain and not self._watches(covered):
            raise GateError(f"exclude={list(exclude)} leaves nothing to watch")
        return covered

    def selection(self, covered: _Coverage, tree: ModelTree) -> Selection:
        """Return what is covered, as a selection."""
        owners = {self.names.bare[self.tensors[key].layer] for key in covered.tensors}
        layers = covered.modules & self.bn_layers.keys() if self.scope.bn_only else covered.modules
        modules = owners | layers
        return Selection(
            names=self.names,
            tree=tree,
            tensors=TensorTable.from_mapping(
                {key: each for key, each in self.tensors.items() if key in covered.tensors}
            ),
            bn_layers={key: bn for key, bn in self.bn_layers.items() if key in covered.modules},
            bn_names=self.bn_names,
            modules={key: module for key, module in self.modules.items() if key in modules},
        )

    def _matches(self, pattern: str) -> _Coverage:
        layers = self.bn_layers if self.scope.bn_only else self.modules
        if not pattern:
            return _Coverage(set(self.tensors), set(layers))
        pattern = self.names.strip_wrappers(pattern)
        tensors = {key for key, w in self.tensors.items() if covers(pattern, key, w.name)}
        modules = {bare for name, bare in self.names.bare.items() if covers(pattern, bare, name)}
        return _Coverage(tensors, modules & layers.keys())

    def _watches(self, covered: _Coverage) -> bool:
        has_bn_layers = not covered.modules.isdisjoint(self.bn_layers)
        return bool(covered.tensors) or (self.scope.judges_normalisation and has_bn_layers)


def _state_owners(names: ModelNames, bn_names: Iterable[str]) -> set[str]:
    """Return the names of all modules whose own tensors are a BN layer's state.

    A layer of a type that bn_layer_types names may keep its state in submodules, so they count.
    """
    owners = set(bn_names)
    if run_config.current.bn_layer_types:
        for name, module in names.modules.items():
            if bn_layer_types.includes(type(module)):
                owners |= {key for key, _ in named_modules(module, name)}
    return owners


def _nothing_to_watch(pattern: str, candidates: _Candidates) -> str:
    names, scope = candidates.names, candidates.scope
    what = _watched_noun(scope)
    exists = names.matches(names.strip_wrappers(pattern))
    if scope.bn_only and not candidates.bn_layers:
        return "the model has no BN layer: there is nothing to watch"
    if exists and not candidates.tensors:
        if scope.bn_only:
            return "the model's BN layers have no such tensors: there is nothing to watch"
        return f"the model has no {what}: there is nothing to watch"
    known = (
        list(candidates.bn_layers) if scope.bn_only else [name for name in names.modules if name]
    )
    problem = f"holds no {what}" if exists else "matches nothing in the model"
    meant = "" if exists else did_you_mean_name(pattern, known, candidates.tensors)
    shallow = sorted(known, key=lambda name: name.count("."))
    listed = [name for name in shallow if name not in (pattern, "")]
    if not listed:
        return f"{pattern!r} {problem}{meant}"
    kinds = "BN layers" if scope.bn_only else "modules"
    mark = "" if meant.endswith("?") else ";"
    return f"{pattern!r} {problem}{meant}{mark} the model's {kinds} are {quoted_list(listed)}"


def _nothing_to_exclude(pattern: str, candidates: _Candidates, tensors: set[str]) -> str:
    layers = {candidates.names.bare[candidates.tensors[key].layer] for key in tensors} - {""}
    meant = did_you_mean_name(pattern, sorted(layers), tensors)
    return f"exclude={pattern!r} matches nothing that is watched{meant}"


def _watched_noun(scope: Scope) -> str:
    """Return the word for one thing that a scope watches."""
    if not scope.parameters:
        return "buffer of a BN layer" if scope.bn_only else "buffer"
    if not scope.buffers:
        return "parameter of a BN layer" if scope.bn_only else "parameter"
    return "BN layer" if scope.bn_only else "parameter or buffer"
