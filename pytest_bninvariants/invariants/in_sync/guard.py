"""The invariant `in_sync`: two models have the same state, or one averages the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import overload

from torch import Tensor, nn

from pytest_bninvariants.checks import is_number
from pytest_bninvariants.errors import GateError, describe
from pytest_bninvariants.invariants.guard import Guard, at_once
from pytest_bninvariants.invariants.in_sync.average_guard import AverageGuard, Buffers
from pytest_bninvariants.invariants.in_sync.pair import Tensors
from pytest_bninvariants.invariants.in_sync.pair_guard import PairGuard
from pytest_bninvariants.invariants.in_sync.ranks import RanksGuard
from pytest_bninvariants.invariants.in_sync.rules import InitialStatistics, causes_of_difference
from pytest_bninvariants.invariants.signature import (
    module_names,
    option_names,
    refuse_wrong_calls,
    spell,
)
from pytest_bninvariants.selection.bn_layers import BN_STATE
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.snapshot.addresses import share_memory
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Change, Verdict


class SyncGuard(PairGuard):
    """Check, when a step ends, that tensors of one name have the same bytes in two models."""

    def _begin(self) -> None:
        """Do nothing: the guard judges the models as the step leaves them."""

    def _judge(self) -> Verdict:
        first, second = self._tensors()
        self._insist_on_copies([*_moving_together(first, second)])
        one, other = self._pair.names
        with undisturbed():
            new = [key for key in second if key not in first]
            differences = changes_since(take_snapshot(first), second, new)
            initial = [*_initial_statistics(differences, first, second, (one, other))]
        changes = tuple(_with_names(change, one, other) for change in differences)
        legend = f"each row shows the value in {one}, then the value in {other}"
        layers = {key.rpartition(".")[0] for key in (*first, *second)}
        return Verdict(
            guard=self.spelling,
            noun="layer",
            broke="differ" if len({change.layer for change in changes}) > 1 else "differs",
            model=self._pair.types,
            source=self.source,
            layers=len(layers),
            tensors=None,
            changes=changes,
            causes=causes_of_difference(initial),
            notes=(legend,) if changes else (),
        )


def _moving_together(first: Tensors, second: Tensors) -> Iterator[str]:
    """Yield the names of shared tensors that training moves; other ones may be constants."""
    for key in sorted(first.keys() & second.keys()):
        tensor, other = first[key].tensor, second[key].tensor
        moves = tensor.requires_grad or key.rpartition(".")[2] in BN_STATE
        if moves and share_memory(tensor, other):
            yield key


def _with_names(change: Change, one: str, other: str) -> Change:
    """Return a change whose text names the model that alone has the tensor."""
    if change.kind == "gone":
        return replace(change, text=f"only in {one}")
    if change.kind == "new":
        return replace(change, text=change.text.replace("new:", f"only in {other}:"))
    return change


def _initial_statistics(
    differences: list[Change], first: Tensors, second: Tensors, names: tuple[str, str]
) -> Iterator[InitialStatistics]:
    """Yield the differing statistics that still have their initial values in one of the models."""
    one, other = names
    keys = {watched.name: key for key, watched in first.items()}
    for change in differences:
        is_statistics = change.name.endswith(("running_mean", "running_var"))
        if not is_statistics or change.kind != "values" or change.name not in keys:
            continue
        key = keys[change.name]
        if _is_initial(first[key].tensor, key):
            yield InitialStatistics(change.layer, behind=one, ahead=other)
        if _is_initial(second[key].tensor, key):
            yield InitialStatistics(change.layer, behind=other, ahead=one)


def _is_initial(tensor: Tensor, key: str) -> bool:
    return bool((tensor == (1.0 if key.endswith("running_var") else 0.0)).all())


@overload
def in_sync(
    one: nn.Module,
    other: nn.Module | None = ...,
    *modules: str,
    parameters: bool = ...,
    exclude: Iterable[str] | str = ...,
) -> Verdict: ...


@overload
def in_sync(
    one: nn.Module,
    other: nn.Module,
    *modules: str,
    decay: float,
    parameters: bool = ...,
    buffers: Buffers = ...,
    exclude: Iterable[str] | str = ...,
) -> Guard: ...


@refuse_wrong_calls(models=2)
def in_sync(
    one: nn.Module,
    other: nn.Module | None = None,
    *modules: str,
    parameters: bool | None = None,
    exclude: Iterable[str] | str = (),
    decay: float | None = None,
    buffers: Buffers | None = None,
) -> Verdict | Guard:
    """Check that two models have the same buffers, bit for bit, or that one averages the other.

    Tensors are matched by name, without the prefixes of wrappers; tensors of wrappers themselves,
    such as `n_averaged`, are left out. Without `decay` the models are compared at once. With it,
    the result is a context manager for one step, after which each parameter of the average must be

        decay * its value before the step + (1 - decay) * the model's value after the step

    within rounding, and its buffers must be as `buffers` says.

    Args:
        one: a model; with `decay`, the one that is trained.
        other: its copy: a target network, a teacher, a replica; with `decay`, the average. None:
            the same model on the other ranks of a distributed run; each rank must call it.
        modules: qualified names of modules or tensors; a name covers its subtree, `*` and `?` work
            as in a shell. Without any: all.
        parameters: compare parameters, too; None: only with `decay`.
        exclude: names to leave out.
        decay: the weight of the old value in an exponential moving average, from 0 to 1.
        buffers: with `decay`: `"copied"`, as torch's AveragedModel does, or `"averaged"`, as it
            does with use_buffers=True, and timm's ModelEma.

    Returns:
        The verdict, which holds; with `decay` a context manager.

    Raises:
        GateError: if there is nothing to compare, or, with `decay`, the step moved nothing.
        InvariantBroken: if a tensor differs, or is in one model only; with `decay`, when left.

    Example:
        >>> import copy
        >>> import torch
        >>> from pytest_bninvariants import InvariantBroken, in_sync
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        >>> teacher = copy.deepcopy(net)
        >>> in_sync(net, teacher).holds
        True
        >>> output = net(torch.randn(4, 3))
        >>> try:
        ...     in_sync(net, teacher)
        ... except InvariantBroken as failure:
        ...     print(str(failure).splitlines()[0])
        1 of 1 layer differs: 1 (left-behind)
    """
    guard = sync_guard(
        one,
        other,
        *modules,
        parameters=parameters,
        exclude=exclude,
        decay=decay,
        buffers=buffers,
    )
    return at_once(guard) if decay is None else guard


def sync_guard(
    one: nn.Module,
    other: nn.Module | None = None,
    *modules: str,
    parameters: bool | None = None,
    exclude: Iterable[str] | str = (),
    decay: float | None = None,
    buffers: Buffers | None = None,
) -> Guard:
    """Return the guard of `in_sync`, which judges when a step ends; same arguments."""
    if one is other:
        raise GateError("in_sync takes two models; got the same one twice")
    _check_average_options(decay, buffers)
    scope = Scope(
        modules=module_names(one, modules),
        exclude=option_names(exclude),
        parameters=decay is not None if parameters is None else parameters,
    )
    arguments = {"parameters": parameters, "decay": decay, "buffers": buffers}
    options: dict[str, object] = {n: value for n, value in arguments.items() if value is not None}
    if scope.exclude:
        options["exclude"] = exclude
    spelling = spell("in_sync", scope.modules, **options)
    if other is None:
        if decay is not None:
            raise GateError("in_sync(decay=...) takes the model and its average")
        return RanksGuard(one, scope, spelling)
    if decay is None:
        return SyncGuard(one, other, scope, spelling)
    return AverageGuard(one, other, scope, decay, buffers or "copied", spelling)


def _check_average_options(decay: object, buffers: object) -> None:
    if decay is not None and not (is_number(decay) and 0 <= decay <= 1):
        raise GateError(f"decay= takes a number from 0 to 1; got {describe(decay)}")
    if decay is None and buffers is not None:
        raise GateError(f"buffers= needs decay=; got {describe(buffers)}")
    if buffers not in (None, "copied", "averaged"):
        raise GateError(f'buffers= takes "copied" or "averaged"; got {describe(buffers)}')
