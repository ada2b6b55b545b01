"""The invariant `batch_invariant`: in eval, a sample's output does not depend on its batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import nn

from pytest_bninvariants.checks import is_int
from pytest_bninvariants.errors import GateError, Refusal, describe
from pytest_bninvariants.evaluation.eval_mode import in_eval
from pytest_bninvariants.evaluation.rounding import Tolerance
from pytest_bninvariants.invariants.batch_invariant.precision_levels import (
    measured_levels,
    tolerated_level,
)
from pytest_bninvariants.invariants.batch_invariant.rules import BatchStatisticsLog
from pytest_bninvariants.invariants.batch_invariant.sample_batch import SampleBatch
from pytest_bninvariants.invariants.batch_invariant.trial import BatchTrial
from pytest_bninvariants.invariants.batch_invariant.whole_output import WholeOutput
from pytest_bninvariants.invariants.guard import Guard, at_once
from pytest_bninvariants.invariants.signature import option_names, refuse_wrong_calls, spell
from pytest_bninvariants.selection.submodules import submodules
from pytest_bninvariants.snapshot.reads.capture import refuse_during_capture
from pytest_bninvariants.verdict import Cause, Change, Verdict

EXAMPLES = 20


class BatchGuard(Guard):
    """Check, when a step ends, that samples do not depend on their batch.

    Args:
        model: the model.
        modules: names of the modules to call in it; empty: the model itself.
        batch: the whole batch.
        tolerance: how far values may be apart; if it is exact, as far as rounding explains.
        examples: the number of batches that hypothesis draws.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: tuple[str, ...],
        batch: SampleBatch,
        tolerance: Tolerance,
        examples: int,
    ) -> None:
        super().__init__(model, spell("batch_invariant", modules, **tolerance.options))
        self._modules, self._batch, self._tolerance = modules, batch, tolerance
        self._examples = examples

    def _begin(self) -> None:
        """Do nothing: the guard judges the model as the step leaves it."""

    def _judge(self) -> Verdict:
        results = [self._result(*each) for each in submodules(self.model, self._modules).items()]
        changes = tuple(change for result in results for change in result.changes)
        return Verdict(
            guard=self.spelling,
            noun="output",
            broke="depends on the batch" if len(changes) == 1 else "depend on the batch",
            column="output",
            model=type(self.model).__name__,
            source=self.source,
            layers=sum(result.outputs for result in results),
            tensors=None,
            changes=changes,
            causes=tuple(cause for result in results for cause in result.causes),
            notes=tuple(note for result in results for note in result.notes),
        )

    def _result(self, name: str, module: nn.Module) -> _ModuleResult:
        log = BatchStatisticsLog()
        with ExitStack() as stack:
            stack.enter_context(in_eval(module, log))
            whole = self._whole_output(name or "output", module)
            trial = self._trial(name or "output", module, whole, stack)
            order, changes = trial.smallest_difference(self._examples)
            causes = log.causes(module, name) if changes else ()
            notes = list(_left_out_notes(whole))
            if changes and not causes:
                notes.append(_mixing_note(module, trial.first_mixing_part(order)))
            elif not changes:
                notes.append(_margin_note(trial))
        return _ModuleResult(len(whole.rows), changes, causes, notes)

    def _whole_output(self, name: str, module: nn.Module) -> WholeOutput:
        whole = WholeOutput.run(module, name, self._batch)
        if not whole.rows_differ:
            raise Refusal(
                f"the output is the same for all {self._batch.size} samples, as with a last layer "
                "whose weights are still zero",
            )
        return whole

    def _trial(
        self, name: str, module: nn.Module, whole: WholeOutput, stack: ExitStack
    ) -> BatchTrial:
        """Return a trial at the precision levels of the tolerance; the stack ends their copies."""
        levels = (
            measured_levels(module, whole.rows, self._batch.arguments, name, stack)
            if self._tolerance.exact
            else [tolerated_level(module, whole.rows, self._tolerance)]
        )
        trial = BatchTrial(self._batch, name, levels)
        path = trial.unrepeatable_output()
        if path is not None:
            raise Refusal(
                f"two runs in eval in a row, on the same batch, differ in {path}: the forward "
                "draws random numbers in eval, as F.dropout does unless it is passed "
                "training=self.training, or keeps a state",
            )
        return trial


class _ModuleResult(NamedTuple):
    """The findings about one module."""

    outputs: int
    changes: list[Change]
    causes: tuple[Cause, ...]
    notes: list[str]


def _left_out_notes(whole: WholeOutput) -> Iterator[str]:
    if whole.left_out:
        yield f"without a row for each sample, so not compared: {', '.join(whole.left_out)}"


def _margin_note(trial: BatchTrial) -> str:
    errors = ", ".join(f"{error:.2g} in {level}" for level, error in trial.largest_errors.items())
    return f"{trial.batches} batches compared; the largest error, as a share of its bound: {errors}"


def _mixing_note(module: nn.Module, name: str | None) -> str:
    if name is None:
        return "no BN layer normalised with batch statistics: something else mixes samples"
    part = module.get_submodule(name)
    where = f"{name} ({type(part).__name__})" if name else f"{type(part).__name__}'s own forward"
    return f"no BN layer normalised with batch statistics; samples are first mixed in {where}"


@refuse_wrong_calls()
def batch_invariant(
    module: nn.Module,
    inputs: Any,
    *,
    modules: Iterable[str] | str = (),
    rtol: float = 0.0,
    atol: float = 0.0,
    examples: int = EXAMPLES,
) -> Verdict:
    """Check that in eval a sample's output does not depend on the other samples of its batch.

    Neither their values, nor their order, nor their number may matter: hypothesis draws batches of
    some of the samples, and each output is compared with that of the whole batch, up to rounding.
    To measure rounding, the whole batch is run in the module's own dtype and in float64.
    docs/invariants/batch_invariant.md derives the bound.

    Args:
        module: the module; it is called in eval, and put back as it was.
        inputs: a batch of at least two different samples: a tensor (N, ...), a tuple of positional
            arguments, or a mapping of keyword arguments.
        modules: names of submodules to call in its place.
        rtol: how far values may be apart, relative to the whole batch's; with it or `atol`,
            rounding is not measured.
        atol: how far values may be apart, in absolute terms.
        examples: the number of batches that hypothesis draws.

    Returns:
        The verdict, which holds; its notes say how close to the bounds the outputs came.

    Raises:
        GateError: if two runs in a row differ, no output has a row for each sample, all samples are
            equal, or the module cannot be run in float64 and no tolerance is given.
        InvariantBroken: if a sample's output depends on its batch.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import InvariantBroken, batch_invariant
        >>> x = torch.randn(8, 2)
        >>> batch_invariant(torch.nn.BatchNorm1d(2), x).holds
        True
        >>> try:
        ...     batch_invariant(torch.nn.BatchNorm1d(2, track_running_stats=False), x)
        ... except InvariantBroken as failure:
        ...     print(str(failure).splitlines()[0])
        1 of 1 output depends on the batch: output (no-stored-statistics)
    """
    return at_once(batch_guard(module, inputs, modules, rtol, atol, examples))


def batch_guard(
    module: nn.Module,
    inputs: Any,
    modules: Iterable[str] | str = (),
    rtol: float = 0.0,
    atol: float = 0.0,
    examples: int = EXAMPLES,
) -> BatchGuard:
    """Return the guard of `batch_invariant`, which judges when a step ends; same arguments."""
    if not is_int(examples) or examples < 1:
        raise GateError(f"examples= takes a whole number >= 1; got {describe(examples)}")
    names = option_names(modules, "modules")
    try:
        refuse_during_capture([module], "made")
        batch = SampleBatch.read(inputs)
    except Refusal as refusal:
        raise refusal.as_gate_error(spell("batch_invariant", names)) from None
    return BatchGuard(module, names, batch, Tolerance(rtol, atol), examples)
