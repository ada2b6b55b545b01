"""The invariant `trains`: parameters move, and BN layers update their statistics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bninvariants.diagnosis.wording import describe_swap, is_now
from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.invariants.bn_updates.layer_result import LayerResult, results_from_log
from pytest_bninvariants.invariants.bn_updates.rules.order import diagnose as diagnose_updates
from pytest_bninvariants.invariants.bn_updates.update_log import UpdateLog
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.sharded_parameters import refuse_sharded_since
from pytest_bninvariants.invariants.signature import (
    module_names,
    option_names,
    refuse_wrong_calls,
    spell,
)
from pytest_bninvariants.invariants.trains.beside_frozen import frozen_part
from pytest_bninvariants.invariants.trains.parameter_log import ParameterLog
from pytest_bninvariants.invariants.trains.parameter_result import ParameterResult
from pytest_bninvariants.invariants.trains.rules import diagnose
from pytest_bninvariants.invariants.trains.value_sample import same_sample, samples_of
from pytest_bninvariants.selection.bn_layers import (
    has_stored_statistics,
    holds_weight_as_buffer,
)
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.changes import compare_buckets, is_unchanged
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.snapshot import Snapshot, take_snapshot
from pytest_bninvariants.snapshot.tensor_bytes import values_of
from pytest_bninvariants.state_change import value_patterns
from pytest_bninvariants.state_change.value_patterns import (
    are_finite,
    count_no_longer_finite,
    only_nan_moved,
)
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.torch_internals.sharding import is_shard
from pytest_bninvariants.verdict import Change, Hazard, Verdict

_STALE = (
    "stale-weights: steps moved it inside one autocast context, which goes on with the first casts "
    "of the weights, so that forwards after a step there used its old values; leave the context "
    "before optimizer.step(), or call torch.clear_autocast_cache() after it"
)

_ELSEWHERE = "this rank holds no part of it, so other ranks judge it"
_OWN_SHARDS = "each rank judges the shards that it holds: those of other ranks may have moved"


class TrainsGuard(Guard):
    """Check that parameters move, and that BN layers update their statistics.

    Args:
        model: the model.
        scope: what must train.
        spelling: the guard as its user wrote it.
        frozen: what a guard that this one belongs to freezes; it need not train.
    """

    def __init__(
        self, model: nn.Module, scope: Scope, spelling: str, frozen: Scope | None = None
    ) -> None:
        super().__init__(model, spelling)
        self._scope = scope
        self._frozen = frozen
        self._kept: Snapshot
        self._elsewhere: list[str] = []
        self._modules: Mapping[str, nn.Module] = {}
        self._layers: dict[str, tuple[str, nn.Module]] = {}
        self._parameter_log: ParameterLog | None = None
        self._update_log: UpdateLog | None = None

    def _begin(self) -> None:
        with undisturbed():
            selection = select(self.model, self._scope)
            stay, layers_stay = self._frozen_part()
            parameters = {
                key: each
                for key, each in selection.tensors.items()
                if key not in stay and each.kind == "parameter" and self._must_train(each.tensor)
            }
            elsewhere = holds_none_of(parameters)
            parameters = {key: each for key, each in parameters.items() if key not in elsewhere}
            self._elsewhere = [] if parameters else elsewhere
            if not (parameters or elsewhere):
                reason = (
                    "the names match no parameter"
                    if self._scope.modules
                    else "no parameter has requires_grad=True"
                )
                raise Refusal(f"{reason}: there is nothing to train")
            self._kept = take_snapshot(parameters)
        self._modules = selection.names.by_bare_name
        self._layers = {
            key: (selection.bn_names[key], layer)
            for key, layer in selection.bn_layers.items()
            if self._scope.buffers
            and key not in layers_stay
            and has_stored_statistics(layer)
            and not holds_weight_as_buffer(layer)
        }
        self._parameter_log = ParameterLog(
            (each.tensor for each in parameters.values()), self.model
        )
        self._update_log = UpdateLog((layer for _, layer in self._layers.values()), self.model)
        self._parameter_log.start()
        self._update_log.start()

    def _pictured_layers(self) -> Mapping[str, nn.Module]:
        return dict(self._layers.values())

    @property
    def watched_layers(self) -> frozenset[str]:
        """Return the names of the layers of which something must train."""
        owners = {key.rpartition(".")[0] for key in self._kept}
        return frozenset(owners.union(self._layers))

    def _frozen_part(self) -> tuple[set[str], set[str]]:
        """Return the keys of the parameters, and of the layers whose buffers, need not train."""
        if self._frozen is None:
            return set(), set()
        return frozen_part(self.model, self._scope, self._frozen)

    def _must_train(self, parameter: Tensor) -> bool:
        return bool(self._scope.modules) or parameter.requires_grad

    def _is_shard(self, name: str) -> bool:
        tensors = self._kept.tensors
        return any(is_shard(each.tensor) for each in tensors.values() if each.name == name)

    def _end(self) -> None:
        if self._parameter_log is not None:
            self._parameter_log.stop()
        if self._update_log is not None:
            self._update_log.stop()

    def _judge(self) -> Verdict:
        assert self._update_log is not None
        with undisturbed():
            parameters = self._parameter_results()
            still, negligible = _untrained(parameters)
            still = _beside_zeros(still, parameters)
            layers = self._layer_results()
            stuck = [each for each in layers if not each.updates or each.undone or each.unusable]
        if still:
            refuse_sharded_since(self._kept.tensors, self.model)
        changes = [Change(name=p.name, layer=p.name, kind="still", text=p.text) for p in still]
        changes += [_change_of_layer(each) for each in stuck]
        return Verdict(
            guard=self.spelling,
            noun="trainable part",
            broke="did not train",
            column="name",
            model=type(self.model).__name__,
            source=self.source,
            layers=len(self._kept) + len(layers),
            tensors=None,
            changes=tuple(changes),
            causes=(*diagnose(still), *diagnose_updates(stuck)),
            hazards=(
                *(Hazard(name=each.name, text=each.hazard) for each in negligible),
                *self._update_log.unregistered.hazards(),
                *(Hazard(name=p.name, text=_STALE) for p in parameters if p.record.stale),
                *(Hazard(name=name, text=_ELSEWHERE) for name in self._elsewhere),
            ),
            notes=(_OWN_SHARDS,) if any(self._is_shard(each.name) for each in still) else (),
        )

    def _parameter_results(self) -> list[ParameterResult]:
        """Return what became of each parameter; the host waits for all of them together."""
        assert self._parameter_log is not None
        log, names = self._parameter_log, ModelNames.from_model(self.model)
        now = {key: each for key, each in names.tensors.items() if each.kind == "parameter"}
        olds = {key: kept.watched.tensor for key, kept in self._kept.items()}
        tensors = {key: now[key].tensor if key in now else old for key, old in olds.items()}
        distinct = {id(each): each for each in (*olds.values(), *tensors.values())}
        samples = dict(zip(distinct, samples_of([*distinct.values()]), strict=True))
        finite = dict(zip(tensors, are_finite([*tensors.values()]), strict=True))
        moved = {}
        replaced = {}
        overwritten = set()
        for key, old in olds.items():
            record, values = log.record_of(old), samples[id(tensors[key])]
            if not log.may_have_missed and record.was_overwritten(values):
                overwritten.add(key)
            record.note_state(samples[id(old)])
            if not record.moved or tensors[key] is not olds[key]:
                record.by_hand.note(values, None)
            moved[key] = not same_sample(record.start, values)
            known = record.by_hand.trained or record.knows_state(values)
            replaced[key] = tensors[key] is not olds[key] and not known
        unmoved = self._unmoved([key for key in olds if not moved[key]], now)
        unmoved |= {key for key, old in olds.items() if self._only_began(old, tensors[key])}
        names_of = _names_by_tensor(now, self._kept)
        return [
            self._parameter_result(
                kept,
                tensors[key],
                moved=key not in unmoved
                and (finite[key] or not only_nan_moved(kept, tensors[key])),
                replaced=replaced[key],
                overwritten=key in overwritten,
                not_finite=0 if finite[key] else count_no_longer_finite(kept, tensors[key]),
                twins=names_of[id(tensors[key])],
                gone="" if key in now else self._why_gone(key, names),
            )
            for key, kept in self._kept.items()
        ]

    def _why_gone(self, key: str, names: ModelNames) -> str:
        """Return why no parameter has a key any more."""
        owner, _, own = key.rpartition(".")
        before = self._modules.get(owner, self.model)
        after = names.by_bare_name.get(owner) if owner else self.model
        if before is after:
            verb = "holds it as a buffer" if key in names.tensors else f"has no {own}"
            return f"{owner or 'the model'} {verb} now"
        kind = None if after is None else type(after).__name__
        return describe_swap(owner, type(before).__name__, kind)

    def _only_began(self, old: Tensor, now: Tensor) -> bool:
        """Tell whether a lazy parameter got its first values in the block, and none after them."""
        assert self._parameter_log is not None
        log, record = self._parameter_log, self._parameter_log.record_of(old)
        if not record.began_lazy or is_lazy(now):
            return False
        return not (record.moved or record.by_hand.trained or log.may_have_missed)

    def _unmoved(self, keys: list[str], now: Mapping[str, WatchedTensor]) -> set[str]:
        """Return which of some parameters have all the bytes that were kept."""
        if not keys:
            return set()
        unchanged = compare_buckets(self._kept, {**self._kept.tensors, **now}).unchanged
        rest = [key for key in keys if key not in unchanged]
        tensors = {key: now.get(key, self._kept[key].watched).tensor for key in rest}
        equal = {key for key in rest if is_unchanged(self._kept[key], tensors[key])}
        return equal | (unchanged & set(keys))

    def _parameter_result(
        self,
        kept: KeptTensor,
        tensor: Tensor,
        *,
        moved: bool,
        replaced: bool,
        overwritten: bool,
        not_finite: int,
        twins: list[str],
        gone: str,
    ) -> ParameterResult:
        assert self._parameter_log is not None
        log = self._parameter_log
        record = log.record_of(tensor if replaced else kept.watched.tensor)
        return ParameterResult(
            name=kept.watched.name,
            record=record,
            moved=record.moved if replaced else moved,
            replaced=replaced,
            overwritten=overwritten and not replaced,
            not_finite=not_finite,
            may_have_missed=log.may_have_missed,
            requires_grad=tensor.requires_grad,
            twins=twins,
            gone=gone,
            shrank=record.moved
            and record.gradient == "none"
            and value_patterns.uniform_factor(kept, tensor) is not None,
            dtype=tensor.dtype,
            stepped=log.stepped,
        )

    def _layer_results(self) -> list[LayerResult]:
        """Return what became of each layer that is to train."""
        assert self._update_log is not None
        results = results_from_log(self._layers, self.model, self._update_log, times=1)
        return [each for each in results if self._scope.modules or each.is_to_update]


def holds_none_of(parameters: Mapping[str, WatchedTensor]) -> list[str]:
    """Return the keys of sharded parameters of which this rank holds no value."""
    return [
        key
        for key, each in parameters.items()
        if not is_lazy(each.tensor)
        and is_shard(each.tensor)
        and not any(part.numel() for part in values_of(each.tensor))
    ]


def _names_by_tensor(
    now: Mapping[str, WatchedTensor], kept: Container[str]
) -> dict[int, list[str]]:
    """Return the names of each tensor under which it need not train, by its id."""
    names: dict[int, list[str]] = defaultdict(list)
    for key, watched in now.items():
        if key not in kept:
            names[id(watched.tensor)].append(watched.name)
    return names


def _untrained(
    parameters: list[ParameterResult],
) -> tuple[list[ParameterResult], list[ParameterResult]]:
    """Return the parameters that did not train: those that should have, and the negligible ones."""
    groups = {each.group for each in parameters if each.moved}
    untrained = [each for each in parameters if not each.trained]
    negligible = [each for each in untrained if each.is_negligible and each.group in groups]
    return [each for each in untrained if each not in negligible], negligible


def _beside_zeros(
    still: list[ParameterResult], parameters: list[ParameterResult]
) -> list[ParameterResult]:
    """Return results that know which parameters began as zeros: their products have no gradient."""
    zeros = [each.name for each in parameters if each.left_zero] if still else []
    return [replace(each, zeros=zeros) for each in still]


def _change_of_layer(result: LayerResult) -> Change:
    text = "0 updates of its statistics"
    if result.unusable:
        text = "; ".join(f"{name}: {fault}" for name, fault in result.unusable)
    elif result.replaced:
        text = is_now(result.type_now)
    elif result.undone:
        text = "its running statistics were put back"
    return Change(name=result.name, layer=result.name, kind="still", text=text)


@refuse_wrong_calls()
def trains(
    model: nn.Module,
    *modules: str,
    buffers: bool = True,
    exclude: Iterable[str] | str = (),
) -> Guard:
    """Check that every parameter moves, and every BN layer in training updates its statistics.

    Args:
        model: the model.
        modules: qualified names of modules or tensors; a name covers its subtree, `*` and `?` work
            as in a shell. Without any: every parameter with requires_grad=True.
        buffers: check running statistics, too.
        exclude: names to leave out.

    Returns:
        A context manager for one step.

    Raises:
        GateError: when entered, if there is nothing to train.
        InvariantBroken: when left, if something did not move.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import InvariantBroken, trains
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
        >>> def train_step():
        ...     optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        ...     model(torch.randn(4, 3)).sum().backward()
        ...     optimizer.step()
        >>> with trains(model, "1"):
        ...     train_step()
        >>> try:
        ...     with trains(model):
        ...         train_step()
        ... except InvariantBroken as broken:
        ...     print(str(broken).splitlines()[0])
        2 of 4 trainable parts did not train: 0.weight, 0.bias (not-in-optimizer)
    """
    scope = Scope(
        modules=module_names(model, modules), exclude=option_names(exclude), buffers=buffers
    )
    options: dict[str, object] = {} if buffers else {"buffers": False}
    options |= {"exclude": exclude} if scope.exclude else {}
    spelling = spell("trains", scope.modules, **options)
    return TrainsGuard(model, scope, spelling)
