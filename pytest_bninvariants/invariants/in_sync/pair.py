"""Two modules side by side: which tensors of one answer to which of the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from pytest_bninvariants.diagnosis.wording import name_list, quoted_list
from pytest_bninvariants.errors import GateError, Refusal
from pytest_bninvariants.selection.model_names import ModelNames, WatchedTensor
from pytest_bninvariants.selection.scope import Scope, select
from pytest_bninvariants.snapshot.addresses import address
from pytest_bninvariants.verdict import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two modules, and where they were found.

    Args:
        one: the first.
        other: the second.
        sources: where each was found; none where they were passed.
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
        """Return what each is called in a sentence."""
        found = [
            source.removeprefix("fixture ") or type(module).__name__
            for source, module in zip(self.sources or ("", ""), (self.one, self.other), strict=True)
        ]
        return ("the first", "the second") if found[0] == found[1] else (found[0], found[1])

    def tensors(self, scope: Scope) -> tuple[dict[str, WatchedTensor], dict[str, WatchedTensor]]:
        """Return what a scope covers in each, by name without wrapper prefixes.

        Args:
            scope: what is compared.

        Raises:
            Refusal: if there is nothing to compare, or both hold the very same tensors.
        """
        try:
            first = covered(self.one, scope, complain=True)
            second = covered(self.other, scope, complain=False)
        except GateError as error:
            hint = "" if scope.parameters else "; parameters are compared with parameters=True"
            raise Refusal(f"{error}{hint}") from None
        shared = first.keys() & second.keys()
        if not shared:
            raise Refusal(
                f"no name is in both models: one has {_first_names(first)}, the other "
                f"{_first_names(second)}"
            )
        if all(is_one(first[key].tensor, second[key].tensor) for key in shared):
            raise Refusal(
                "both hold the very same tensors, so there is nothing to compare: copy "
                "the model with copy.deepcopy"
            )
        return first, second


def is_one(tensor: Tensor, other: Tensor) -> bool:
    """Tell whether two models' tensors are one, or lie in the same memory."""
    return tensor is other or address(tensor) == address(other) != 0


def insist_on_copies(shared: list[str]) -> None:
    """Refuse tensors that two models share, and that are equal in both whatever is done to them.

    Args:
        shared: their names; none: all is well.
    """
    if shared:
        what = "tensor" if len(shared) == 1 else "tensors"
        raise Refusal(
            f"both models hold the very same {what} {quoted_list(shared)}, so there is "
            "nothing to compare: copy the model with copy.deepcopy, or leave out what they are to "
            "share with exclude="
        )


def covered(model: nn.Module, scope: Scope, *, complain: bool) -> dict[str, WatchedTensor]:
    """Return what a scope covers in a model, by name, without what wrappers hold themselves.

    Args:
        model: the model.
        scope: what is compared.
        complain: whether to raise where that is nothing.
    """
    selection = select(model, scope, complain=complain)
    own = set(_of_wrappers(selection.names))
    return {key: watched for key, watched in selection.tensors.items() if watched.name not in own}


def _of_wrappers(names: ModelNames) -> Iterator[str]:
    """Yield the tensors that wrappers hold themselves, as AveragedModel does its counter."""
    parents = {name.rpartition(".")[0] for name in names.bare if name and _is_wrapped(name, names)}
    for watched in names.tensors.values():
        if watched.layer in parents:
            yield watched.name


def _is_wrapped(name: str, names: ModelNames) -> bool:
    return names.bare[name] == names.bare[name.rpartition(".")[0]]


def _first_names(tensors: dict[str, WatchedTensor]) -> str:
    return quoted_list(list(tensors)) or "none"


def left_behind(layers: Iterable[str], behind: str, ahead: str, how: str) -> Cause:
    """Return the cause of running statistics that did not follow those of another module.

    Args:
        layers: the BN layers.
        behind: the module that they are in.
        ahead: the other.
        how: what is the matter with them.
    """
    names = list(dict.fromkeys(layers))
    return Cause(
        name="left-behind",
        layers=tuple(names),
        why=f"the running statistics of {name_list(names)} in {behind} {how}, unlike those in "
        f"{ahead}: they are buffers, which a loop over parameters() leaves behind",
        fix=f"copy the buffers, too: for mine, theirs in zip({expression(behind, 'copy')}"
        f".buffers(), {expression(ahead, 'model')}.buffers()): mine.copy_(theirs)",
    )


def expression(name: str, default: str) -> str:
    """Return a fixture's name as code; a default for what is no fixture."""
    return name.strip("'") if name.startswith("'") else default
