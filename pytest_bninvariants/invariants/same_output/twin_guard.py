"""Check that two modules give the same outputs, such as before and after a conversion."""

from __future__ import annotations

from torch import nn

from pytest_bninvariants.evaluation.call_arguments import CallArguments
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.invariants.same_output.eval_guard import EvalGuard
from pytest_bninvariants.invariants.same_output.module_differences import describe_differences
from pytest_bninvariants.invariants.signature import spell
from pytest_bninvariants.verdict import Verdict


class TwinGuard(EvalGuard):
    """Check that one module gives the outputs of another.

    Args:
        one: a module.
        other: the module that was made from it.
        arguments: what to call both with.
        tolerance: how far apart values may be.
    """

    def __init__(
        self, one: nn.Module, other: nn.Module, arguments: CallArguments, tolerance: Tolerance
    ) -> None:
        spelling = spell("assert_same_output", (), **tolerance.options)
        super().__init__(other, spelling, arguments, tolerance)
        self._one = one

    def _begin(self) -> None:
        """Do nothing: the guard compares both modules when it ends."""

    def _judge(self) -> Verdict:
        first, second = self._outputs(self._one), self._outputs(self.model)
        changes = first.changes_to(second, self._tolerance)
        return Verdict(
            guard=self.spelling,
            noun="output",
            broke="differ" if len(changes) > 1 else "differs",
            column="output",
            model=f"{type(self._one).__name__} and {type(self.model).__name__}",
            source="",
            layers=len(first.paths),
            tensors=None,
            changes=tuple(changes),
            notes=describe_differences(self._one, self.model) if changes else (),
        )
