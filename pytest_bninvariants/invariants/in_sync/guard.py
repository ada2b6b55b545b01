"""The invariant `in_sync`: two models have the same state, or one averages the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import overload

from torch import Tensor, distributed, nn

from pytest_bninvariants.checks import is_number
from pytest_bninvariants.errors import GateError, Refusal, describe
from pytest_bninvariants.invariants.guard import Guard, at_once
from pytest_bninvariants.invariants.in_sync.across_ranks.guard import RanksGuard
from pytest_bninvariants.invariants.in_sync.average_guard import AverageGuard, Buffers
from pytest_bninvariants.invariants.in_sync.difference_rules import (
    TensorDifference,
    causes_of_difference,
)
from pytest_bninvariants.invariants.in_sync.pair import Tensors
from pytest_bninvariants.invariants.in_sync.pair_guard import PairGuard, change_to_shared
from pytest_bninvariants.invariants.in_sync.step_log import StepLog
from pytest_bninvariants.invariants.signature import (
    module_names,
    option_names,
    refuse_wrong_calls,
    spell,
)
from pytest_bninvariants.selection.bn_layers import BN_STATE, STATISTICS
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Change, Verdict


class SyncGuard(PairGuard):
    """Check, when a step ends, that tensors of one name have the same bytes in two models."""

    def _begin(self) -> None:
        if self.is_at_once:
            return
        try:
            first, second = self._tensors()
        except Refusal:  # the step may yet make what is compared
            first, second = {}, {}
        self._watch((first, second), StepLog(first, second))

    def _judge(self) -> Verdict:
        tensors = first, second = self._tensors()
        shared = self._shared_by_step(tensors, _moved_by_training(first))
        one, other = self._pair.names
        with undisturbed():
            new = [key for key in second if key not in first]
            changes = [
                *(
                    _with_names(c, one, other)
                    for c in changes_since(take_snapshot(first), second, new)
                ),
                *(change_to_shared(first[key], other) for key in shared),
            ]
            differences = [*self._differences(changes, tensors, shared)]
        legend = f"each row shows the value in {one}, then the value in {other}"
        layers = {key.rpartition(".")[0] for key in (*first, *second)}
        return Verdict(
            guard=self.spelling,
            noun="layer",
            broke=_broke(changes, only_shared=len(changes) == len(shared)),
            model=self._pair.types,
            source=self.source,
            layers=len(layers),
            tensors=None,
            changes=tuple(changes),
            causes=causes_of_difference(differences),
            notes=(legend,) if len(changes) > len(shared) else (),
        )

    def _differences(
        self, changes: list[Change], tensors: tuple[Tensors, Tensors], shared: list[str]
    ) -> Iterator[TensorDifference]:
        """Yield what is known of each tensor that differs, or that both models hold."""
        one, other = self._pair.names
        keys = {watched.name: key for key, watched in tensors[0].items()}
        differing = [keys[change.name] for change in changes if change.name in keys]
        beside_parameters = any(tensors[0][key].kind == "parameter" for key in differing)
        for change in changes:
            key = keys.get(change.name)
            if key is None or key not in tensors[1]:
                continue
            for behind, ahead, tensor in (
                (other, one, tensors[1][key]),
                (one, other, tensors[0][key]),
            ):
                yield TensorDifference(
                    name=change.name,
                    layer=change.layer,
                    behind=behind,
                    ahead=ahead,
                    is_initial=change.kind == "values" and _is_initial(tensor.tensor, key),
                    beside_parameters=beside_parameters,
                    is_shared=key in shared and behind == other,
                    loaded_itself_at=None
                    if self._log is None
                    else self._log.loaded_itself_at(tensor.tensor),
                )


def _moved_by_training(tensors: Tensors) -> list[str]:
    """Return the keys of the tensors that training moves; other ones may be constants."""
    return [
        key
        for key, watched in sorted(tensors.items())
        if watched.tensor.requires_grad or key.rpartition(".")[2] in BN_STATE
    ]


def _broke(changes: list[Change], *, only_shared: bool) -> str:
    """Return the verb for layers that are not in sync."""
    several = len({change.layer for change in changes}) > 1
    if changes and only_shared:
        return "are not copies" if several else "is not a copy"
    return "differ" if several else "differs"


def _with_names(change: Change, one: str, other: str) -> Change:
    """Return a change whose text names the model that alone has the tensor."""
    if change.kind == "gone":
        return replace(change, text=f"only in {one}")
    if change.kind == "new":
        return replace(change, text=change.text.replace("new:", f"only in {other}:"))
    return change


def _is_initial(tensor: Tensor, key: str) -> bool:
    """Tell whether a tensor is a running statistic of a new layer."""
    if not key.endswith(STATISTICS):
        return False
    return bool((tensor == (1.0 if key.endswith("running_var") else 0.0)).all())


@overload
def in_sync(
    one: nn.Module,
    other: nn.Module | None = ...,
    *modules: str,
    parameters: bool = ...,
    exclude: Iterable[str] | str = ...,
    group: distributed.ProcessGroup | None = ...,
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
    group: distributed.ProcessGroup | None = None,
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
            the same model on the other ranks of a distributed run; each rank must call it, and
            what is sharded is compared only between ranks that hold the same shard.
        modules: qualified names of modules or tensors; a name covers its subtree, `*` and `?` work
            as in a shell. Without any: all.
        parameters: compare parameters, too; None: only with `decay`.
        exclude: names to leave out.
        decay: the weight of the old value in an exponential moving average, from 0 to 1.
        buffers: with `decay`: `"copied"`, as torch's AveragedModel does, or `"averaged"`, as it
            does with use_buffers=True, and timm's ModelEma.
        group: without `other`: the process group whose ranks are compared; None: all ranks.

    Returns:
        The verdict, which holds; with `decay` a context manager.

    Raises:
        GateError: if there is nothing to compare, or, with `decay`, the step moved nothing.
        InvariantBroken: if a tensor differs, or is in one model only; with `decay`, when left.

    Examples:
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
        group=group,
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
    group: distributed.ProcessGroup | None = None,
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
        return RanksGuard(one, scope, group, spelling)
    if group is not None:
        raise GateError("in_sync(group=...) compares ranks, and takes no second model")
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
