"""Two models side by side, and which tensors of one belong to which tensors of the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from pytest_bninvariants.diagnosis.wording import quoted_list
from pytest_bninvariants.errors import GateError, Refusal
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.addresses import share_memory

Tensors = dict[str, WatchedTensor]
"""Tensors of a model, by name without the prefixes of wrappers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPair:
    """Two models, and where they were found.

    Args:
        one: the first.
        other: the second.
        sources: where each was found; empty if the user passed them.
    """

    one: nn.Module
    other: nn.Module
    sources: tuple[str, ...] = ()

    @property
    def types(self) -> str:
        """Return the names of their classes."""
        return f"{type(self.one).__name__} and {type(self.other).__name__}"

    @property
    def names(self) -> tuple[str, str]:
        """Return the name of each model for a sentence."""
        names = [
            source.removeprefix("fixture ") or type(module).__name__
            for source, module in zip(self.sources or ("", ""), (self.one, self.other), strict=True)
        ]
        return ("the first", "the second") if names[0] == names[1] else (names[0], names[1])

    def tensors(self, scope: Scope) -> tuple[Tensors, Tensors]:
        """Return the tensors in a scope, of each model.

        Raises:
            Refusal: if there is nothing to compare.
        """
        try:
            first = select_tensors(self.one, scope, complain=True)
            second = select_tensors(self.other, scope, complain=False)
        except GateError as error:
            hint = "" if scope.parameters else "; parameters are compared with parameters=True"
            raise Refusal(f"{error}{hint}") from None
        shared = first.keys() & second.keys()
        if not shared:
            raise Refusal(
                f"the models have no name in common: one has {_first_names(first)}, the other "
                f"{_first_names(second)}"
            )
        return first, second


def shared_keys(tensors: tuple[Tensors, Tensors]) -> set[str]:
    """Return the keys of the tensors that both of two models hold."""
    first, second = tensors
    common = first.keys() & second.keys()
    return {key for key in common if share_memory(first[key].tensor, second[key].tensor)}


def select_tensors(model: nn.Module, scope: Scope, *, complain: bool) -> Tensors:
    """Return the tensors of a model in a scope, without those of wrappers themselves.

    Args:
        model: the model.
        scope: what to compare.
        complain: whether to raise if there are none.
    """
    selection = select(model, scope, complain=complain)
    excluded = set(_tensors_of_wrappers(selection.names))
    return {key: w for key, w in selection.tensors.items() if w.name not in excluded}


def _tensors_of_wrappers(names: ModelNames) -> Iterator[str]:
    """Yield the names of tensors that wrappers hold themselves, such as AveragedModel's counter."""
    wrappers = {name.rpartition(".")[0] for name in names.bare if name and _is_wrapped(name, names)}
    for watched in names.tensors.values():
        if watched.layer in wrappers:
            yield watched.name


def _is_wrapped(name: str, names: ModelNames) -> bool:
    return names.bare[name] == names.bare[name.rpartition(".")[0]]


def _first_names(tensors: Tensors) -> str:
    return quoted_list(list(tensors)) or "none"
