"""The base of the guards that compare two models."""

from __future__ import annotations

from torch import nn

from pytest_bninvariants.diagnosis.wording import one_or_many, quoted_list
from pytest_bninvariants.errors import Refusal
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.in_sync.pair import ModelPair, Tensors
from pytest_bninvariants.selection.scope import Scope


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

    def _insist_on_copies(self, shared: list[str]) -> None:
        """Refuse tensors that the models share: they are equal whatever happens to them.

        Args:
            shared: their names; empty if there are none.
        """
        if shared:
            noun = one_or_many(shared, "tensor", "tensors")
            raise Refusal(
                f"both models hold the very same {noun} {quoted_list(shared)}, so there is nothing "
                "to compare: copy the model with copy.deepcopy, or leave out what they are "
                "meant to share with exclude="
            )
