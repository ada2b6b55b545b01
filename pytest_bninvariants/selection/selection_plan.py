"""Remember what a scope covers in models of one structure, without keeping a model alive."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from torch import nn

from pytest_bninvariants import run_config
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.model_tree import ModelTree
from pytest_bninvariants.selection.tensor_table import TensorTable

_MOST_PLANS = 4  # each compares its names with the model's, which takes time if many do not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The watched part of a model; its mappings are keyed by the name without wrapper prefixes.

    Args:
        names: the model's names.
        tensors: the watched tensors.
        bn_layers: the watched BN layers, which must keep `eps` and use stored statistics.
        bn_names: the qualified names of all BN layers.
        modules: every module in the watched subtrees; one of them must run.
        tree: which objects hold the model's names.
    """

    names: ModelNames
    tensors: TensorTable
    bn_layers: Mapping[str, nn.Module]
    bn_names: Mapping[str, str]
    modules: Mapping[str, nn.Module]
    tree: ModelTree


class SelectionPlan:
    """What a scope covers in every model of the same structure.

    It depends only on the names and types of modules, parameters and buffers. It keeps no object
    and no type alive, since a test may define types; once a type is gone, the plan fits no model.

    Args:
        scope: the scope.
        selection: what it covers in one model.
    """

    def __init__(self, scope: object, selection: Selection) -> None:
        self._scope = scope
        self._bn_layer_types = run_config.current.bn_layer_types
        self._names = selection.tree.names
        self._type_ids = list(map(id, selection.tree.types))
        self._types = [weakref.ref(kind) for kind in set(selection.tree.types)]
        self._bare = selection.names.bare
        self._all_columns = selection.names.tensors.columns
        self._columns = selection.tensors.columns
        numbers = dict(zip(self._all_columns.keys, count()))
        self._numbers = [numbers[key] for key in self._columns.keys]
        self._bn_names = selection.bn_names
        self._bn_layers = list(selection.bn_layers)
        names = {
            bare: name for name, bare in self._bare.items()
        }  # of a wrapper and its module, the module
        self._modules = {key: names[key] for key in selection.modules}

    def fits(self, scope: object, tree: ModelTree) -> bool:
        """Tell whether this plan is for this scope and for models with this tree."""
        return (
            self._bn_layer_types is run_config.current.bn_layer_types
            and self._names == tree.names
            and self._type_ids == list(map(id, tree.types))
            and self._scope == scope
            and None not in [kind() for kind in self._types]
        )

    def apply_to(self, tree: ModelTree) -> Selection:
        """Return what the scope covers in a model that this plan fits."""
        present = [module for module in tree.modules if module is not None]
        tensors = [tensor for tensor in tree.tensors if tensor is not None]
        table = TensorTable(self._all_columns, tensors)
        names = ModelNames(dict(zip(self._bare, present, strict=True)), self._bare, table)
        modules = names.modules
        return Selection(
            names=names,
            tensors=TensorTable(self._columns, [tensors[number] for number in self._numbers]),
            bn_layers={key: modules[self._bn_names[key]] for key in self._bn_layers},
            bn_names=self._bn_names,
            modules={key: modules[name] for key, name in self._modules.items()},
            tree=tree,
        )


_recent: tuple[SelectionPlan, ...] = ()


def find_planned(scope: object, tree: ModelTree) -> Selection | None:
    """Return what a scope covers in a model, if a plan from a recent model fits."""
    return next((plan.apply_to(tree) for plan in _recent if plan.fits(scope, tree)), None)


def remember_plan(scope: object, selection: Selection) -> None:
    """Keep the plan of a selection for the next model of the same structure."""
    global _recent
    _recent = (SelectionPlan(scope, selection), *_recent[: _MOST_PLANS - 1])
