"""Judge whether ranks on shards of a batch train as one process on all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import distributed, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.evaluation.batches import samples_in
from pytest_bninvariants.evaluation.gradient_pass import LossFunction, PassGradients, Wrapper
from pytest_bninvariants.evaluation.precision import require_float64
from pytest_bninvariants.evaluation.rank_exchange import Ranks, rank_list
from pytest_bninvariants.invariants.rank_invariant.differences import (
    ProcessDifference,
    differences_from,
    worst_of_ranks,
)
from pytest_bninvariants.invariants.rank_invariant.exchange_evidence import relate
from pytest_bninvariants.invariants.rank_invariant.layer_outputs import first_layer_that_differs
from pytest_bninvariants.invariants.rank_invariant.rules import RankEvidence, causes_of
from pytest_bninvariants.invariants.rank_invariant.shard_pass import (
    CALLER,
    OneProcess,
    ShardedBatch,
    run_in_one_process,
    run_on_ranks,
    start_digests,
)
from pytest_bninvariants.selection.walk import all_tensors
from pytest_bninvariants.verdict import Cause, Verdict

_SAME = (
    (
        "another batch",
        "each rank passes the same whole batch, and takes its shard itself; make it from one seed, "
        "or broadcast it",
    ),
    (
        "another model",
        "start all ranks from one state; in_sync(model, parameters=True) says how they differ",
    ),
    ("a model in other modes", "call train() and eval() alike on each rank"),
)


class RankJudgement:
    """Run the passes, in an order in which no rank waits for one that cannot judge.

    Args:
        ranks: the ranks.
        model: this rank's model.
        batch: the whole batch.
        loss: the loss.
        wrap: how a copy is wrapped.
    """

    def __init__(
        self, ranks: Ranks, model: nn.Module, batch: Any, loss: LossFunction, wrap: Wrapper
    ) -> None:
        self._ranks, self._model, self._given = ranks, model, batch
        self._loss, self._wrap = loss, wrap

    def verdict(self) -> Verdict:
        """Return the verdict, the same on each rank."""
        prepared: list[tuple[ShardedBatch, OneProcess]] = []
        starts = self._exchange(lambda: self._prepare(prepared))
        self._insist_on_one_start(starts)
        batch, one = prepared[0]
        left: list[PassGradients] = []
        told = self._exchange(lambda: self._differences(batch, one, left))
        worst = worst_of_ranks(self._ranks.numbers, told)
        is_broken = any(difference.excess > 1 for _, difference in worst)
        causes = self._causes(batch, one, left[0]) if is_broken else ()
        return self._worded(batch, one, worst, causes)

    def _exchange(self, find: Callable[[], Any]) -> list[Any]:
        try:
            return self._ranks.exchange(find)
        except GateError as error:
            text = str(error).replace(f"judge: {CALLER}: ", "judge: ")
            raise GateError(text if text.startswith(CALLER) else f"{CALLER}: {text}") from (
                error.__cause__
            )

    def _prepare(self, prepared: list[tuple[ShardedBatch, OneProcess]]) -> tuple[str, ...]:
        """Do all that needs no other rank."""
        samples, ranks = samples_in(self._given), len(self._ranks.numbers)
        if samples < ranks:
            raise GateError(f"a batch of {samples} cannot be cut into shards for {ranks} ranks")
        require_float64(all_tensors(self._model), "tell rounding from a real difference")
        position = self._ranks.numbers.index(distributed.get_rank())
        batch = ShardedBatch.split(self._given, ranks, position)
        start = start_digests(self._model, batch)
        prepared.append((batch, run_in_one_process(self._model, batch, self._loss)))
        return start

    def _insist_on_one_start(self, starts: list[tuple[str, ...]]) -> None:
        """Refuse ranks that do not start alike: then nothing is known of how they train."""
        for number, (what, advice) in enumerate(_SAME):
            first = starts[0][number]
            others = [
                rank
                for rank, start in zip(self._ranks.numbers, starts, strict=True)
                if start[number] != first
            ]
            if others:
                raise GateError(
                    f"{CALLER}: {rank_list(others)} got {what} than rank {self._ranks.numbers[0]}: "
                    f"{advice}"
                )

    def _differences(
        self, batch: ShardedBatch, one: OneProcess, left: list[PassGradients]
    ) -> list[ProcessDifference]:
        """Run on all ranks, and return what differs from one process on this one."""
        left.append(run_on_ranks(self._model, batch, self._loss, self._wrap))
        return differences_from(one, left[0])

    def _causes(
        self, batch: ShardedBatch, one: OneProcess, left: PassGradients
    ) -> tuple[Cause, ...]:
        """Return why something differs; all ranks call this, and find the same."""
        relations = self._exchange(lambda: relate(one, left.sums, batch, self._ranks.group))
        layers = self._exchange(lambda: first_layer_that_differs(self._model, batch, self._loss))
        evidence = []
        if not all(each.left_is_mean for each in relations):
            evidence.append(
                RankEvidence(
                    side="exchange",
                    left_is_sum=all(each.left_is_sum for each in relations),
                    left_is_own=all(each.left_is_own for each in relations),
                    unreached=one.whole.unreached,
                )
            )
        first_layer = next((layer for layer in layers if layer is not None), None)
        if not all(each.whole_is_mean for each in relations) or first_layer is not None:
            normalised = self._normalised(left)
            evidence.append(
                RankEvidence(
                    side="computation",
                    whole_is_sum=all(each.whole_is_sum for each in relations),
                    whole_is_weighted=all(each.whole_is_weighted for each in relations),
                    sizes=batch.sizes,
                    in_training=tuple(name for name, training in normalised if training),
                    in_eval=tuple(name for name, training in normalised if not training),
                    first_layer=first_layer,
                )
            )
        return causes_of(evidence)

    def _normalised(self, left: PassGradients) -> list[tuple[str, bool]]:
        """Return the layers that used the statistics of a shard, and whether in training mode."""
        modules = dict(self._model.named_modules())
        return [
            (name, training)
            for name, training in left.normalised.items()
            if not isinstance(modules.get(name), nn.SyncBatchNorm)
        ]

    def _worded(
        self,
        batch: ShardedBatch,
        one: OneProcess,
        worst: list[tuple[int, ProcessDifference]],
        causes: tuple[Cause, ...],
    ) -> Verdict:
        changes = tuple(each.as_change(rank) for rank, each in worst if each.excess > 1)
        sizes = " or ".join(map(str, sorted(set(batch.sizes))))
        count = len(batch.sizes)
        return Verdict(
            guard=f"{CALLER}()",
            noun="tensor",
            broke=f"differ{'' if len(changes) > 1 else 's'} from one process",
            column="tensor",
            model=type(self._model).__name__,
            source="",
            layers=len(worst),
            tensors=None,
            changes=changes,
            causes=causes,
            notes=(
                f"one process on a batch of {sum(batch.sizes)}, and {count} ranks on shards of "
                f"{sizes}, in float64 on copies of the model: the loss is {one.whole.loss:.6g}",
            ),
        )
