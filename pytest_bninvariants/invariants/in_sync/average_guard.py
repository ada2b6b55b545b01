"""Check that a model is the exponential moving average of another."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.invariants.in_sync.average_evidence import gather_wrong_averages
from pytest_bninvariants.invariants.in_sync.average_tensor import AverageTensor
from pytest_bninvariants.invariants.in_sync.average_text import change_of
from pytest_bninvariants.invariants.in_sync.pair import Tensors, shared_keys
from pytest_bninvariants.invariants.in_sync.pair_guard import (
    PairGuard,
    change_to_shared,
    insist_on_copies,
)
from pytest_bninvariants.invariants.in_sync.rules import causes_of_wrong_average
from pytest_bninvariants.invariants.in_sync.step_log import StepLog
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Cause, Change, Verdict

Buffers = Literal["copied", "averaged"]


class AverageGuard(PairGuard):
    """Check that a step moves an average as its decay says.

    Args:
        model: the model.
        average: its average.
        scope: what to compare.
        decay: the weight of the old value.
        buffers: whether buffers must be copied or averaged.
        spelling: the guard as its user wrote it.
    """

    broken_by_writes = True

    def __init__(
        self,
        model: nn.Module,
        average: nn.Module,
        scope: Scope,
        decay: float,
        buffers: Buffers,
        spelling: str,
    ) -> None:
        super().__init__(model, average, scope, spelling)
        self._decay, self._buffers = decay, buffers
        self._kept: Mapping[str, KeptTensor] = {}
        self._model_kept: Mapping[str, KeptTensor] = {}
        self._is_first_update = False

    def _begin(self) -> None:
        tensors = first, second = self._tensors()
        insist_on_copies(
            [], all_shared=len(shared_keys(tensors)) == len(first.keys() & second.keys())
        )
        unmatched = sorted(first.keys() ^ second.keys())
        if unmatched:
            raise Refusal(
                f"only one of the two models has {unmatched[0]!r}; leave it out with "
                f"exclude={unmatched[0]!r}"
            )
        with undisturbed():
            self._kept = take_snapshot(second, exact=True)
            self._model_kept = take_snapshot(first, exact=True)
        count = getattr(self._other, "n_averaged", None)
        if isinstance(count, Tensor) and count.numel() == 1:
            self._is_first_update = not count.item()
        self._watch(tensors, StepLog(first, second, self._kept))

    def _traced(self) -> Mapping[str, KeptTensor]:
        return self._kept

    def _judge(self) -> Verdict:
        tensors = first, second = self._tensors()
        gone = sorted(self._kept.keys() - (first.keys() & second.keys()))
        if gone:
            raise Refusal(f"{gone[0]!r} is gone from one of the models")
        with undisturbed():
            outcomes = {key: AverageOutcome.of(each) for key, each in self._averages(tensors)}
            moved = [key for key, outcome in outcomes.items() if outcome.has_moved]
            shared = self._shared_by_step(tensors, moved)
            changes: tuple[Change, ...] = ()
            causes: tuple[Cause, ...] = ()
            if shared or not all(outcome.holds for outcome in outcomes.values()):
                averages = dict(self._averages(tensors))
                changes = tuple(self._changes(averages, shared))
                causes = self._causes(averages, tensors, shared)
            else:
                self._insist_on_movement(outcomes, first)
        first_update = "the first update of an AveragedModel copies the model"
        return Verdict(
            guard=self.spelling,
            noun="layer",
            broke=f"not averaged with decay {self._decay:g}",
            model=self._pair.types,
            source=self.source,
            layers=len({watched.layer for watched in second.values()}),
            tensors=None,
            changes=changes,
            causes=causes,
            notes=(first_update,) if self._is_first_update and changes else (),
        )

    def _changes(
        self, averages: dict[str, AverageTensor], shared: Collection[str]
    ) -> Iterator[Change]:
        """Yield the change of each tensor that is wrong, or that both models hold by the step."""
        for key, average in averages.items():
            if key in shared:
                yield change_to_shared(average.watched, self._pair.names[0])
            elif not average.holds:
                yield change_of(average)

    def _causes(
        self,
        averages: dict[str, AverageTensor],
        tensors: tuple[Tensors, Tensors],
        shared: Collection[str],
    ) -> tuple[Cause, ...]:
        assert self._log is not None
        reverse = self._reverse(tensors)
        wrong = gather_wrong_averages(
            averages, reverse, self._pair, tensors, shared, self._decay, self._log
        )
        return causes_of_wrong_average(wrong)

    def _averages(self, tensors: tuple[Tensors, Tensors]) -> Iterator[tuple[str, AverageTensor]]:
        """Yield the tensors of the average by key; each takes several times its own memory."""
        first, second = tensors
        for key, kept in self._kept.items():
            yield (
                key,
                AverageTensor.after_step(
                    kept, second[key], self._model_kept[key], first[key], self._decay_of(kept)
                ),
            )

    def _reverse(self, tensors: tuple[Tensors, Tensors]) -> Iterator[AverageTensor]:
        """Yield the model's tensors as if the model were the average."""
        first, second = tensors
        for key, kept in self._model_kept.items():
            yield AverageTensor.after_step(
                kept, first[key], self._kept[key], second[key], self._decay_of(kept)
            )

    def _decay_of(self, kept: KeptTensor) -> float | None:
        """Return the weight of a tensor's old value; None if the tensor must be copied."""
        is_copied = kept.watched.kind == "buffer" and self._buffers == "copied"
        return None if is_copied or self._is_first_update else self._decay

    def _insist_on_movement(self, outcomes: dict[str, AverageOutcome], first: Tensors) -> None:
        """Refuse a step after which even an average that was not updated would hold."""
        trained = [
            outcome
            for key, outcome in outcomes.items()
            if first[key].tensor.requires_grad and outcome.is_to_move
        ]
        if not any(outcome.shows_update for outcome in trained or outcomes.values()):
            raise Refusal(
                "nothing moved far enough to tell an average that was updated from one that was "
                f"not: train and update inside the guard{_precision_advice(trained)}"
            )


class AverageOutcome(NamedTuple):
    """What a step made of one tensor of an average, without its values.

    Args:
        dtype: the tensor's dtype.
        holds: whether it is what it must be.
        has_moved: whether the step changed it.
        is_to_move: whether an update would move it towards the model's values.
        shows_update: whether it would be wrong if it had not been updated.
    """

    dtype: torch.dtype
    holds: bool
    has_moved: bool
    is_to_move: bool
    shows_update: bool

    @classmethod
    def of(cls, average: AverageTensor) -> AverageOutcome:
        """Return the outcome of a tensor after the step."""
        return cls(
            average.dtype,
            average.holds,
            average.has_moved,
            average.is_to_move,
            average.shows_update,
        )


def _precision_advice(averages: list[AverageOutcome]) -> str:
    """Return advice if some averages have a dtype that is too coarse for their updates."""
    dtypes = sorted({str(each.dtype) for each in averages if each.dtype.itemsize < 4})
    return f", and keep the average in torch.float32, not {' or '.join(dtypes)}" if dtypes else ""
