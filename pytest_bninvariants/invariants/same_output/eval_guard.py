"""The base of the guards that compare outputs: it calls modules in eval, twice."""

from __future__ import annotations

from torch import nn

from pytest_bninvariants.diagnosis.wording import clauses
from pytest_bninvariants.errors import GateError, Refusal
from pytest_bninvariants.evaluation.call_arguments import CallArguments
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.invariants.guard import Guard
from pytest_bninvariants.invariants.same_output.outputs import OutputSnapshot


class EvalGuard(Guard):
    """Compare what modules return in eval.

    Args:
        model: the model.
        spelling: the guard as its user wrote it.
        arguments: what to call the modules with.
        tolerance: how far apart values may be.
    """

    def __init__(
        self, model: nn.Module, spelling: str, arguments: CallArguments, tolerance: Tolerance
    ) -> None:
        super().__init__(model, spelling)
        self._arguments, self._tolerance = arguments, tolerance

    def _outputs(self, module: nn.Module, name: str = "") -> OutputSnapshot:
        """Return the outputs of a module in eval.

        Raises:
            Refusal: if the module raises, or if two runs in a row differ.
        """
        try:
            first, second = self._arguments.run_twice(
                module,
                lambda output: OutputSnapshot.take(
                    output, name or "output", exact=not self._tolerance.exact
                ),
            )
        except GateError:
            raise
        except Exception as error:  # whatever it raises, there is no output to judge
            raise Refusal(
                f"{type(module).__name__} in eval raised on these inputs: "
                f"{type(error).__name__}: {error}{self._meant_modules()}"
            ) from error
        changes = first.changes_to(second, self._tolerance)
        if changes:
            listed = clauses([f"{change.name} {change.text}" for change in changes])
            raise Refusal(
                f"two runs in eval in a row, on the same inputs, differ: {listed}; its forward "
                "draws random numbers in eval, as F.dropout does unless it is passed "
                "training=self.training, or keeps a state, or its kernels are not deterministic "
                "(then give rtol= or atol=)",
            )
        return first

    def _meant_modules(self) -> str:
        """Return the end of a message, if an input may have been meant as a module's name."""
        known = {name for name, _ in self.model.named_modules()}
        names = [each for each in self._arguments.args if isinstance(each, str) and each in known]
        if not names:
            return ""
        given = names[0] if len(names) == 1 else names
        return f"; to compare the outputs of a part of the model, write modules={given!r}"
