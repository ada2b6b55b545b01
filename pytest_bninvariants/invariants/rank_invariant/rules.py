"""Why ranks on shards of a batch do not train as one process on the whole batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pytest_bninvariants.diagnosis.rule import Rule, explain
from pytest_bninvariants.diagnosis.wording import keep_in_eval, name_list, one_or_many
from pytest_bninvariants.verdict import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvidence:
    """What is known of one side: of the exchange between ranks, or of what each rank computes.

    Args:
        side: which side it is.
        left_is_sum: the wrapper left the sum of the ranks' gradients on each rank.
        left_is_own: on some rank it left what that rank computed alone.
        unreached: the parameters that the loss of one process gives no gradient.
        whole_is_sum: one process's gradients are the sum of the ranks'.
        whole_is_weighted: they are the mean that weights each rank by its number of samples.
        sizes: the numbers of samples of the shards.
        in_training: the BN layers that normalised with batch statistics in training mode.
        in_eval: those that did so in eval.
        first_layer: the first layer whose output depends on the other samples of the batch.
    """

    side: Literal["exchange", "computation"]
    left_is_sum: bool = False
    left_is_own: bool = False
    unreached: tuple[str, ...] = ()
    whole_is_sum: bool = False
    whole_is_weighted: bool = False
    sizes: tuple[int, ...] = ()
    in_training: tuple[str, ...] = ()
    in_eval: tuple[str, ...] = ()
    first_layer: str | None = field(default=None)

    @property
    def is_exchange(self) -> bool:
        """Tell whether it is about the exchange between ranks."""
        return self.side == "exchange"


def causes_of(evidence: Iterable[RankEvidence]) -> tuple[Cause, ...]:
    """Return why the ranks do not train as one process."""
    return explain(RULES, evidence, layers=_layers)


def _layers(group: list[RankEvidence]) -> list[str]:
    (evidence,) = group
    return [*evidence.in_training, *evidence.in_eval]


def _explain_not_exchanged(_: list[RankEvidence]) -> tuple[str, str]:
    return (
        "each rank was left with its own gradients: nothing averaged them",
        "call the wrapper that loss(model, batch) gets, and not the .module in it; leave no_sync() "
        "before the last backward; and have wrap= return the wrapper",
    )


def _explain_unused(group: list[RankEvidence]) -> tuple[str, str]:
    names = list(group[0].unreached)
    return (
        f"the loss gives {name_list(names)} no gradient: DistributedDataParallel goes on waiting "
        "for it, and leaves what shares a bucket with it as each rank computed it",
        "wrap with find_unused_parameters=True, or call requires_grad_(False) on what the loss "
        "does not use before you wrap the model",
    )


def _explain_summed(group: list[RankEvidence]) -> tuple[str, str]:
    return (
        "each rank was left with the sum of the ranks' gradients, and not with their mean: the "
        "gradients grow with the number of ranks",
        "divide by torch.distributed.get_world_size() after the all_reduce, or reduce with "
        "ReduceOp.AVG, in the communication hook or loop that adds them up",
    )


def _explain_lossy(_: list[RankEvidence]) -> tuple[str, str]:
    return (
        "what the exchange left is neither the mean nor the sum of the ranks' gradients, nor what "
        "each rank computed: a communication hook compresses or changes them, or some are left out",
        "leave the hook out to see whether it is the reason; if its loss of precision is meant, "
        "this invariant does not hold for it",
    )


def _explain_own_statistics(group: list[RankEvidence]) -> tuple[str, str]:
    names = list(group[0].in_training)
    first = group[0].first_layer
    starts = f"; {first} is the first layer whose outputs differ" if first in names else ""
    return (
        f"{name_list(names)} normalised on each rank with the statistics of that rank's shard, and "
        f"not with those of the whole batch{starts}",
        "convert before you wrap the model: nn.SyncBatchNorm.convert_sync_batchnorm(model), which "
        f"normalises all ranks' shards as one batch (on accelerators); for frozen layers, "
        f"{keep_in_eval(names)}; or use a norm without batch statistics, such as GroupNorm",
    )


def _explain_no_stored_statistics(group: list[RankEvidence]) -> tuple[str, str]:
    names = list(group[0].in_eval)
    listed = name_list(names)
    return (
        f"{listed} {one_or_many(names, 'was', 'were')} in eval, and normalised on each rank with "
        "the statistics of that rank's shard",
        f"have {listed} keep and use running statistics (track_running_stats=True), or use "
        "GroupNorm instead",
    )


def _explain_mixing(group: list[RankEvidence]) -> tuple[str, str]:
    layer = group[0].first_layer or "the model"
    return (
        f"{layer} gives other outputs for a sample if its rank has other samples beside it, and is "
        "no BN layer that was seen to use batch statistics",
        f"look for what {layer} computes over dimension 0, such as a mean of the batch; compute it "
        "from all ranks' samples (all_gather), or for each sample by itself",
    )


def _explain_sum(_: list[RankEvidence]) -> tuple[str, str]:
    return (
        "the gradients of one process are the sum of the ranks' gradients: the loss is a sum over "
        "samples, and the wrapper takes the mean of the ranks",
        'use a mean over samples (reduction="mean"), or multiply the loss by the number of ranks',
    )


def _explain_unequal(group: list[RankEvidence]) -> tuple[str, str]:
    sizes = " and ".join(map(str, sorted(set(group[0].sizes))))
    return (
        f"the shards have {sizes} samples, and the wrapper takes the plain mean of the ranks' mean "
        "losses: a sample in a small shard counts more than one in a large shard",
        "give each rank as many samples (drop_last=True in the DataLoader or DistributedSampler), "
        "or multiply each rank's loss by its samples times the ranks over all samples",
    )


def _explain_not_a_mean(_: list[RankEvidence]) -> tuple[str, str]:
    return (
        "every layer gives a sample the same outputs as in one process, and no weighting of the "
        "ranks' gradients by samples adds up: the loss is not a mean over samples (but over "
        "tokens, over the targets that are not ignored, or over pairs of samples)",
        "divide by what the loss averages over on all ranks: all_reduce that count, and multiply "
        "the rank's loss by its own count times the ranks over the total",
    )


RULES: tuple[Rule[RankEvidence], ...] = (
    Rule(
        cause="unused-parameters",
        applies=lambda each: each.is_exchange and not each.left_is_sum and bool(each.unreached),
        explain=_explain_unused,
    ),
    Rule(
        cause="not-exchanged",
        applies=lambda each: each.is_exchange and each.left_is_own,
        explain=_explain_not_exchanged,
    ),
    Rule(
        cause="summed",
        applies=lambda each: each.is_exchange and each.left_is_sum,
        explain=_explain_summed,
    ),
    Rule(
        cause="lossy-exchange",
        applies=lambda each: each.is_exchange,
        explain=_explain_lossy,
    ),
    Rule(
        cause="per-rank-statistics",
        applies=lambda each: bool(each.in_training),
        explain=_explain_own_statistics,
    ),
    Rule(
        cause="no-stored-statistics",
        applies=lambda each: bool(each.in_eval),
        explain=_explain_no_stored_statistics,
    ),
    Rule(
        cause="mixes-samples",
        applies=lambda each: each.first_layer is not None,
        explain=_explain_mixing,
    ),
    Rule(cause="sum-of-samples", applies=lambda each: each.whole_is_sum, explain=_explain_sum),
    Rule(
        cause="unequal-shards",
        applies=lambda each: each.whole_is_weighted and len(set(each.sizes)) > 1,
        explain=_explain_unequal,
    ),
    Rule(cause="not-a-mean", applies=lambda _: True, explain=_explain_not_a_mean),
)
"""The first rule that applies explains a side."""
