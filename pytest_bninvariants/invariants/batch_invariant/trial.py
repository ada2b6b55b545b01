"""Compare batches of some samples with the whole batch, on one module in eval."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

from pytest_bninvariants.batchnorm.arithmetic import UNIT
from pytest_bninvariants.evaluation.precision import CastModule
from pytest_bninvariants.evaluation.rounding import MARGIN, unit_of
from pytest_bninvariants.invariants.batch_invariant.precision_levels import PrecisionLevel
from pytest_bninvariants.invariants.batch_invariant.sample_batch import (
    Order,
    SampleBatch,
    in_words,
)
from pytest_bninvariants.invariants.batch_invariant.sample_mixing import (
    first_mixing_part,
    recorded_outputs,
)
from pytest_bninvariants.invariants.batch_invariant.shrinking import smallest_differing_batch
from pytest_bninvariants.invariants.batch_invariant.whole_output import run_module
from pytest_bninvariants.selection.walk import all_tensors
from pytest_bninvariants.verdict import Change

_FAR_ABOVE_ROUNDING = 2.0**-30
"""Far above rounding in float64, and far below the effect of batch mates."""


class BatchTrial:
    """Compare batches of some samples with the whole batch.

    Args:
        batch: the whole batch.
        name: the name of the module's output.
        levels: the dtypes in which the module is run, finest first.

    Attributes:
        batches: the number of batches that were compared.
        largest_errors: the largest error within its bound, in bounds, by the level's name.
    """

    def __init__(self, batch: SampleBatch, name: str, levels: list[PrecisionLevel]) -> None:
        self._batch, self._name, self._levels = batch, name, levels
        self._paths = list(levels[0].whole)
        self.batches = 0
        self.largest_errors: dict[str, float] = {}

    def unrepeatable_output(self) -> str | None:
        """Return an output in which two runs of the whole batch differ at the finest level."""
        level, everyone = self._levels[0], tuple(range(self._batch.size))
        again = run_module(level.module, self._batch.arguments, self._name)
        for path in self._paths:
            error, _ = level.compare(path, again.get(path), everyone)
            if error > 1:
                return path
        return None

    def compare(self, order: Order) -> list[Change]:
        """Return the changes in the outputs for a batch of these samples."""
        self.batches += 1
        for level in self._levels:
            changes = self._compare_at(level, order)
            if changes:
                return changes
        return []

    def _compare_at(self, level: PrecisionLevel, order: Order) -> list[Change]:
        try:
            part = run_module(level.module, self._batch.part(order), self._name)
        except Exception as error:  # whatever the module raises is the finding
            where = in_words(order, self._batch.size)
            text = f"{where}: {type(error).__name__}: {error}"
            return [_change(path, text) for path in self._paths]
        changes = []
        for path in self._paths:
            error_in_bounds, text = level.compare(path, part.get(path), order)
            if error_in_bounds > 1:
                changes.append(_change(path, text))
            else:
                largest = self.largest_errors.get(level.name, 0.0)
                self.largest_errors[level.name] = max(largest, error_in_bounds)
        return changes

    def smallest_difference(self, examples: int) -> tuple[Order, list[Change]]:
        """Return the smallest batch whose outputs differ, and its changes; both empty for none.

        Args:
            examples: the number of batches that hypothesis draws; a few large ones are added.
        """
        smallest = smallest_differing_batch(self.compare, self._batch.size, examples)
        if smallest is not None:
            return smallest
        everyone = tuple(range(self._batch.size))
        for order in (everyone[::-1], everyone[1:], everyone[: len(everyone) // 2]):
            changes = self.compare(order)
            if changes:
                return order, changes
        return (), []

    def first_mixing_part(self, order: Order) -> str | None:
        """Return the first part of the module whose samples depend on each other, if known.

        In float64 rounding hides nothing; a module that cannot run there is run in its own dtype.
        """
        module, unit = self._levels[0].module, UNIT[torch.float64]
        if isinstance(module, CastModule):
            return self._first_mixing_part(module, module.twin, order, _FAR_ABOVE_ROUNDING)
        own_unit = unit_of([*all_tensors(module), *self._levels[0].whole.values()])
        if own_unit > unit:
            with suppress(Exception):  # a module may raise anything in another dtype
                copy = CastModule(module, torch.float64)
                return self._first_mixing_part(copy, copy.twin, order, _FAR_ABOVE_ROUNDING)
        eager = getattr(module, "_orig_mod", module)
        rounding = max(MARGIN * own_unit, _FAR_ABOVE_ROUNDING)
        return self._first_mixing_part(eager, eager, order, rounding)

    def _first_mixing_part(
        self, module: nn.Module, recorded: nn.Module, order: Order, rounding: float
    ) -> str | None:
        with recorded_outputs(recorded) as whole:
            run_module(module, self._batch.arguments, self._name)
        # where fewer samples raise, the layers that ran before may tell
        with recorded_outputs(recorded) as part, suppress(Exception):
            run_module(module, self._batch.part(order), self._name)
        return first_mixing_part(whole, part, order, rounding)


def _change(path: str, text: str) -> Change:
    return Change(name=path, layer=path, kind="values", text=text)
