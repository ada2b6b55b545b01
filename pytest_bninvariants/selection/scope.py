"""Which modules and which tensor names a guard watches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from pytest_bninvariants import run_config
from pytest_bninvariants.diagnosis.did_you_mean import did_you_mean_name
from pytest_bninvariants.diagnosis.wording import quoted_list
from pytest_bninvariants.errors import GateError, shown
from pytest_bninvariants.selection import bn_layer_types, selection_plan
from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.selection.model_names import (
    ModelNames,
    ModelTree,
    TensorTable,
    WatchedTensor,
    covers,
    named_modules,
)
from pytest_bninvariants.selection.selection_plan import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a guard is asked to watch.

    Args:
        modules: qualified names of modules or tensors; a name covers its subtree, `*` and `?` work
            as in a shell (and cross dots). Empty: the whole model.
        exclude: names, of the same sort, that are left out.
        parameters: watch parameters.
        buffers: watch buffers, and how BN layers normalise.
        allow_batch_stats: let BN layers normalise with batch statistics.
        bn_only: watch only BN layers.

    Raises:
        GateError: if an option is not a bool, or nothing is left to watch.
    """

    modules: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    parameters: bool = True
    buffers: bool = True
    allow_batch_stats: bool = False
    bn_only: bool = False

    def __post_init__(self) -> None:
        for option in ("parameters", "buffers", "allow_batch_stats"):
            value = getattr(self, option)
            if not isinstance(value, bool):
                raise GateError(f"{option}= takes True or False; got {shown(value)}")
        if not (self.parameters or self.buffers):
            raise GateError("parameters=False and buffers=False together leave nothing to watch")

    @property
    def judges_normalisation(self) -> bool:
        """Tell whether normalising with batch statistics is a violation here."""
        return self.buffers and not self.allow_batch_stats


def select(model: nn.Module, scope: Scope, *, complain: bool = True) -> Selection:
    """Find what a scope covers in a model.

    Args:
        model: the model.
        scope: what is to be watched.
        complain: raise where a pattern finds nothing; after the step names may be gone.

    Raises:
        GateError: a pattern matches nothing that can be watched, or everything is excluded.
    """
    tree = ModelTree(model)
    known = selection_plan.find_planned(scope, tree)
    if known is not None:
        return known
    found = _found_out(model, tree, scope, complain=complain)
    return selection_plan.remember_plan(scope, found) if complain else found


def _found_out(model: nn.Module, tree: ModelTree, scope: Scope, *, complain: bool) -> Selection:
    there = _Candidates.from_names(ModelNames.from_model(model), scope)
    covered = there.covered_by(scope.modules or ("",), complain=complain)
    covered = there.without(covered, scope.exclude, complain=complain)
    tensors, below = covered
    names, bn_layers = there.names, there.bn_layers
    owners = {names.bare[there.tensors[key].layer] for key in tensors}
    return Selection(
        names=names,
        tree=tree,
        tensors=TensorTable.from_mapping(
            {key: each for key, each in there.tensors.items() if key in tensors}
        ),
        bn_layers={key: module for key, module in bn_layers.items() if key in below},
        bn_names=there.bn_names,
        modules={
            key: module
            for key, module in there.modules.items()
            if key in owners or (key in below and (key in bn_layers or not scope.bn_only))
        },
    )


_Covered = tuple[set[str], set[str]]
"""Keys of tensors, and of modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """What patterns may choose from, by key.

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
        of_bn = [name for name, module in names.modules.items() if is_bn_layer(module)]
        owners = _state_owners(names, of_bn) if scope.bn_only else names.modules.keys()
        kinds = {"parameter"} if scope.parameters else set()
        kinds |= {"buffer"} if scope.buffers else set()
        bn_names: dict[str, str] = {}
        for name in of_bn:
            bn_names.setdefault(names.bare[name], name)  # the outer one, if a wrapper is one too
        return cls(
            scope=scope,
            names=names,
            modules={names.bare[name]: module for name, module in names.modules.items()},
            tensors={
                key: watched
                for key, watched in names.tensors.items()
                if watched.layer in owners and watched.kind in kinds
            },
            bn_names=bn_names,
            bn_layers={key: names.modules[name] for key, name in bn_names.items()},
        )

    def covered_by(self, patterns: Iterable[str], *, complain: bool) -> _Covered:
        """Return what any of the patterns covers."""
        tensors: set[str] = set()
        below: set[str] = set()
        for pattern in patterns:
            found = self._matches(pattern)
            if complain and not self._watches(found):
                raise GateError(_nothing_to_watch(pattern, self))
            tensors |= found[0]
            below |= found[1]
        return tensors, below

    def without(self, covered: _Covered, exclude: Iterable[str], *, complain: bool) -> _Covered:
        """Return what is covered and not excluded."""
        tensors, below = covered
        for pattern in exclude:
            left_out = self._matches(pattern)
            if complain and not (left_out[0] & tensors or left_out[1] & below):
                raise GateError(_nothing_to_exclude(pattern, self, tensors))
            tensors, below = tensors - left_out[0], below - left_out[1]
        if complain and not self._watches((tensors, below)):
            raise GateError(f"exclude={list(exclude)} leaves nothing to watch")
        return tensors, below

    def _matches(self, pattern: str) -> _Covered:
        layers = self.bn_layers if self.scope.bn_only else self.modules
        if not pattern:
            return set(self.tensors), set(layers)
        spelled = self.names.spelled(pattern)
        tensors = {key for key, w in self.tensors.items() if covers(spelled, key, w.name)}
        below = {bare for name, bare in self.names.bare.items() if covers(spelled, bare, name)}
        return tensors, below & layers.keys()

    def _watches(self, covered: _Covered) -> bool:
        tensors, below = covered
        judged = self.scope.judges_normalisation and not below.isdisjoint(self.bn_layers)
        return bool(tensors) or judged


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold each name, without wrapper prefixes, at the moment."""
    names = ModelNames.from_model(model)
    return {names.bare[name]: module for name, module in names.modules.items()}


def submodules(model: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules that patterns name, without wrapper prefixes; the model itself for none.

    Raises:
        GateError: a pattern is no name, or matches no module.
    """
    layers = layers_of(model) | {"": model}
    found: dict[str, nn.Module] = {}
    for pattern in tuple(patterns) or ("",):
        if not isinstance(pattern, str):
            raise GateError(f"modules are given by qualified name; got {shown(pattern)}")
        plain = ModelNames.from_model(model).spelled(pattern).replace("[", "[[]")
        names = [name for name in layers if fnmatchcase(name, plain)]
        if not names:
            meant = did_you_mean_name(pattern, filter(None, layers))
            raise GateError(f"{pattern!r} matches no module in the model{meant}")
        found |= {name: layers[name] for name in names}
    return found


def _state_owners(names: ModelNames, of_bn: Iterable[str]) -> set[str]:
    """Return the names of all modules whose own tensors are a BN layer's state.

    A layer of a type that bn_layer_types names keeps its state where only its author knows, so its
    whole subtree counts.
    """
    owners = set(of_bn)
    if run_config.current.bn_layer_types:
        for name, module in names.modules.items():
            if bn_layer_types.names(type(module)):
                owners |= {key for key, _ in named_modules(module, name)}
    return owners


def _nothing_to_watch(pattern: str, there: _Candidates) -> str:
    names, scope = there.names, there.scope
    what = _what(scope)
    spelled = names.spelled(pattern)
    exists = any(covers(spelled, bare, name) for name, bare in names.bare.items())
    exists = exists or any(covers(spelled, key, w.name) for key, w in names.tensors.items())
    if scope.bn_only and not there.bn_layers:
        return "the model has no BN layer: there is nothing to watch"
    if exists and not there.tensors:
        if scope.bn_only:
            return "the model's BN layers have no such tensors: there is nothing to watch"
        return f"the model has no {what}: there is nothing to watch"
    known = list(there.bn_layers) if scope.bn_only else [name for name in names.modules if name]
    problem = f"holds no {what}" if exists else "matches nothing in the model"
    meant = "" if exists else did_you_mean_name(pattern, known, there.tensors)
    shallow = sorted(known, key=lambda name: name.count("."))
    listed = [name for name in shallow if name not in (pattern, "")]
    if not listed:
        return f"{pattern!r} {problem}{meant}"
    kinds = "BN layers" if scope.bn_only else "modules"
    mark = "" if meant.endswith("?") else ";"
    return f"{pattern!r} {problem}{meant}{mark} the model's {kinds} are {quoted_list(listed)}"


def _nothing_to_exclude(pattern: str, there: _Candidates, tensors: set[str]) -> str:
    layers = {there.names.bare[there.tensors[key].layer] for key in tensors} - {""}
    meant = did_you_mean_name(pattern, sorted(layers), tensors)
    return f"exclude={pattern!r} matches nothing that is watched{meant}"


def _what(scope: Scope) -> str:
    """Return what a scope watches in the singular."""
    if not scope.parameters:
        return "buffer of a BN layer" if scope.bn_only else "buffer"
    if not scope.buffers:
        return "parameter of a BN layer" if scope.bn_only else "parameter"
    return "BN layer" if scope.bn_only else "parameter or buffer"
