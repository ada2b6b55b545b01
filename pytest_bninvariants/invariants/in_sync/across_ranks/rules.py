"""Why the ranks of a distributed run hold different state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import name_list, one_or_many, span
from pytest_bninvariants.evaluation.rank_exchange import rank_list
from pytest_bninvariants.invariants.in_sync.across_ranks.rank_tensor import ComparedTensor
from pytest_bninvariants.selection.bn_layers import BN_STATE, STATISTICS
from pytest_bninvariants.verdict import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class RankDifference:
    """A tensor that differs between ranks.

    Args:
        tensor: the tensor on all ranks.
        counts: how many batches its layer has counted on each rank; None if it does not count.
        model_counts: the batches that any layer of the model has counted on any rank; empty if
            none counts.
        initial_on: the ranks on which the layer's statistics are those of a new layer.
        both_statistics: whether both statistics of the layer differ.
        same_names: whether all ranks have the same names.
    """

    tensor: ComparedTensor
    counts: tuple[int, ...] | None
    model_counts: frozenset[int]
    initial_on: tuple[int, ...]
    both_statistics: bool
    same_names: bool

    @property
    def is_bn_state(self) -> bool:
        """Tell whether it is a running statistic or a counter."""
        return self.tensor.name.endswith(BN_STATE)

    @property
    def filled_on(self) -> list[int]:
        """Return the ranks on which the layer's statistics are not those of a new layer."""
        return [rank for rank, _ in self.tensor.present if rank not in self.initial_on]


def causes_of(compared: Sequence[ComparedTensor]) -> tuple[Cause, ...]:
    """Return why ranks differ, as far as that is known."""
    return explain(
        RANK_RULES,
        _differences(compared),
        layers=lambda group: dict.fromkeys(each.tensor.first.layer for each in group),
        tensors=lambda group: [each.tensor.name for each in group],
        event=_event_of,
    )


def _event_of(each: RankDifference) -> object:
    """Return what tells apart differences that one rule explains."""
    if each.tensor.missing_on:
        return tuple(each.tensor.missing_on)
    return (each.initial_on, each.counts) if each.is_bn_state else None


def _differences(compared: Sequence[ComparedTensor]) -> Iterable[RankDifference]:
    by_name = {each.name: each for each in compared}
    counts = {name: told for name, each in by_name.items() if (told := _counts(each))}
    model_counts = frozenset(count for each in counts.values() for count in each)
    same_names = not any(each.missing_on for each in compared)
    for each in compared:
        if each.differs:
            prefix = each.name.rpartition(".")[0]
            prefix = f"{prefix}." if prefix else ""
            statistics = [by_name.get(prefix + name) for name in STATISTICS]
            yield RankDifference(
                tensor=each,
                counts=counts.get(f"{prefix}num_batches_tracked"),
                model_counts=model_counts,
                initial_on=_initial_on(statistics),
                both_statistics=all(one is not None and one.differs for one in statistics),
                same_names=same_names,
            )


def _counts(tensor: ComparedTensor) -> tuple[int, ...] | None:
    if not tensor.name.endswith("num_batches_tracked") or tensor.missing_on:
        return None
    return tuple(int(each.mean or 0) for _, each in tensor.present)


def _initial_on(statistics: Sequence[ComparedTensor | None]) -> tuple[int, ...]:
    """Return the ranks on which both statistics of a layer are those of a new layer."""
    if not all(statistics):
        return ()
    ranks = [
        {rank for rank, tensor in each.present if tensor.is_initial} for each in statistics if each
    ]
    return tuple(sorted(set.intersection(*ranks)))


def _names(group: list[RankDifference]) -> str:
    return name_list(list(dict.fromkeys(each.tensor.first.layer for each in group)))


def _broadcast_from(rank: int) -> str:
    """Return the code that sends one rank's state to all."""
    return (
        "for t in (*model.parameters(), *model.buffers()): "
        f"torch.distributed.broadcast(t.data, {rank})"
    )


def _is_new_on_some(each: RankDifference) -> bool:
    return each.is_bn_state and bool(each.initial_on and each.filled_on)


def _explain_missing(group: list[RankDifference]) -> tuple[str, str]:
    names = [each.tensor.name for each in group]
    without = rank_list(group[0].tensor.missing_on)
    return (
        f"the model of {without} has no {name_list(names)}",
        "build the same model on every rank: look for code that goes by the rank",
    )


def _explain_new(group: list[RankDifference]) -> tuple[str, str]:
    new, filled = rank_list(list(group[0].initial_on)), group[0].filled_on
    return (
        f"the statistics of {_names(group)} are those of a new layer on {new}, and hold data on "
        f"{rank_list(filled)}: {one_or_many(list(map(str, filled)), 'that rank', 'those ranks')} "
        "alone loaded a checkpoint or trained",
        "load the checkpoint on every rank before you wrap the model, or send what rank "
        f"{filled[0]} holds: {_broadcast_from(filled[0])}",
    )


def _explain_own_statistics(group: list[RankDifference]) -> tuple[str, str]:
    batches = span(group[0].counts or (), "batch", "batches")
    return (
        f"{_names(group)} counted {batches} on each rank, as where each rank updates the running "
        "statistics from its own batches: "
        "DistributedDataParallel averages gradients, not statistics",
        "before you wrap the model, convert it with "
        "nn.SyncBatchNorm.convert_sync_batchnorm(model), which normalises the ranks' batches as "
        "one (on accelerators); or let all ranks take those of rank 0 before you evaluate or save: "
        "for t in model.buffers(): torch.distributed.broadcast(t, 0)",
    )


def _explain_uneven(group: list[RankDifference]) -> tuple[str, str]:
    ranks = [rank for rank, _ in group[0].tensor.present]
    counts = zip(ranks, group[0].counts or (), strict=False)
    listed = ", ".join(f"{count} on rank {rank}" for rank, count in counts)
    return (
        f"{_names(group)} counted unequal numbers of batches: {listed}",
        "run as many forwards in training mode on each rank: put the model in eval for what one "
        "rank runs alone, and give the ranks equally many batches",
    )


def _explain_different_start(group: list[RankDifference]) -> tuple[str, str]:
    return (
        f"the parameters of {_names(group)} differ, and no BN layer of the model has counted a "
        "batch: the ranks started from other random numbers, or one alone loaded a checkpoint",
        "call torch.manual_seed() with the same number on each rank before you build the model, "
        "load checkpoints on every rank, or wrap the model in DistributedDataParallel, which sends "
        f"rank 0's; without it: {_broadcast_from(0)}",
    )


def _explain_trained_apart(group: list[RankDifference]) -> tuple[str, str]:
    return (
        f"the parameters of {_names(group)} differ, and the model has trained: each rank stepped "
        "with gradients of its own, or the ranks started apart",
        "call the DistributedDataParallel wrapper, not its .module, in the train step; leave "
        "no_sync() before the last micro-batch; change parameters and load checkpoints on every "
        "rank, and before the model is wrapped",
    )


def _is_counted_apart(each: RankDifference) -> bool:
    return each.is_bn_state and each.counts is not None and len(set(each.counts)) > 1


def _is_counted_together(each: RankDifference) -> bool:
    return each.is_bn_state and each.both_statistics and bool(each.counts and min(each.counts))


def _is_parameter(each: RankDifference) -> bool:
    """Tell whether it is a plain parameter that differs in its values alone, in equal models."""
    first = each.tensor.first
    specs = {tensor.spec for _, tensor in each.tensor.present}
    is_plain = first.kind == "parameter" and not first.shard
    return is_plain and each.same_names and len(specs) == 1


RANK_RULES: tuple[Rule[RankDifference], ...] = (
    Rule(
        cause="missing-on-a-rank",
        applies=lambda each: bool(each.tensor.missing_on),
        explain=_explain_missing,
    ),
    Rule(cause="new-on-a-rank", applies=_is_new_on_some, explain=_explain_new),
    Rule(cause="uneven-batches", applies=_is_counted_apart, explain=_explain_uneven),
    Rule(
        cause="per-rank-statistics", applies=_is_counted_together, explain=_explain_own_statistics
    ),
    Rule(
        cause="different-start",
        applies=lambda each: _is_parameter(each) and each.model_counts == frozenset({0}),
        explain=_explain_different_start,
    ),
    Rule(
        cause="trained-apart",
        applies=lambda each: _is_parameter(each) and max(each.model_counts, default=0) > 0,
        explain=_explain_trained_apart,
    ),
)
"""The first rule that applies explains a tensor."""
