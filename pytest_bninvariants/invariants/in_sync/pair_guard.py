"""The base of the guards that compare two models."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from pytest_bninvariants.diagnosis.wording import one_or_many, quoted_list
from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.in_sync.pair import ModelPair, Tensors, shared_keys
from pytest_bninvariants.invariants.in_sync.step_log import StepLog
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.verdict import Change


class PairGuard(Guard):
    """Compare the tensors of two models.

    Args:
        one: the first model.
        other: the second model.
        scope: what to compare.
        spelling: the guard as its user wrote it.
    """

    def __init__(self, one: nn.Module, other: nn.Module, scope: Scope, spelling: str) -> None:
        super().__init__(one, spelling)
        self._other, self._scope = other, scope
        self._shared_before: set[str] | None = None
        self._log: StepLog | None = None

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """Return both models."""
        return self.model, self._other

    @property
    def _pair(self) -> ModelPair:
        return ModelPair(one=self.model, other=self._other, sources=self.sources)

    def _tensors(self) -> tuple[Tensors, Tensors]:
        """Return the tensors of each model.

        Raises:
            Refusal: if there is nothing to compare.
        """
        return self._pair.tensors(self._scope)

    def _watch(self, tensors: tuple[Tensors, Tensors], log: StepLog) -> None:
        """Note what both models hold when the step begins, and record what happens in it."""
        self._shared_before = shared_keys(tensors)
        self._log = log
        log.start()

    def _end(self) -> None:
        if self._log is not None:
            self._log.stop()

    def _shared_by_step(
        self, tensors: tuple[Tensors, Tensors], moved: Collection[str]
    ) -> list[str]:
        """Return the keys of tensors that the step made both models hold.

        Args:
            tensors: the tensors of each model after the step.
            moved: keys of tensors that moved, or may move: both models must not hold these.

        Raises:
            Refusal: if both held such tensors already, which are equal whatever happens to them.
        """
        shared = shared_keys(tensors)
        held_before = shared if self._shared_before is None else shared & self._shared_before
        all_shared = len(shared) == len(tensors[0].keys() & tensors[1].keys())
        relevant = [key for key in (tensors[0] if all_shared else moved) if key in shared]
        by_step = [key for key in relevant if key not in held_before]
        if not by_step:
            insist_on_copies(relevant, all_shared=all_shared)
        return by_step


def insist_on_copies(shared: list[str], *, all_shared: bool) -> None:
    """Refuse tensors that two models share: they are equal whatever happens to them.

    Args:
        shared: their names; empty if there are none.
        all_shared: whether the models share all tensors.
    """
    if all_shared:
        raise Refusal(
            "both models hold the very same tensors, so there is nothing to compare: copy the "
            "model with copy.deepcopy"
        )
    if shared:
        noun = one_or_many(shared, "tensor", "tensors")
        raise Refusal(
            f"both models hold the very same {noun} {quoted_list(shared)}, so there is nothing "
            "to compare: copy the model with copy.deepcopy, or leave out what they are "
            "meant to share with exclude="
        )


def change_to_shared(watched: WatchedTensor, other: str) -> Change:
    """Return the change of a tensor that a step made both models hold."""
    text = f"since the step the same tensor as in {other}"
    return Change(name=watched.name, layer=watched.layer, kind="values", text=text)
