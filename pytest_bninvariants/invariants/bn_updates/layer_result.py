"""What became of one BN layer's statistics in a step, and what is wrong with that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pytest_bninvariants.diagnosis.wording import name_list
from pytest_bninvariants.invariants.bn_updates.layer_record import LayerRecord
from pytest_bninvariants.invariants.bn_updates.state_history import (
    Provenance,
    StatisticsSnapshot,
    statistics_of,
)
from pytest_bninvariants.invariants.bn_updates.update_log import UpdateLog
from pytest_bninvariants.selection.bn_layers import STATISTICS, counts_batches
from pytest_bninvariants.snapshot.tensor_bytes import is_readable
from pytest_bninvariants.verdict import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """What was found of one layer at the end of a step.

    Args:
        name: its qualified name.
        record: what was seen of it.
        provenance: what led to its statistics.
        times: how many updates there should be in each of the steps, or `forwards`.
        steps: how many such steps there were.
        compiled: whether compiled code ran.
        elsewhere: how many updates were of tensors that the layer held for a call alone.
        replaced: whether another module holds its name now, or none.
        counted: by how much its counter moved; None if it has none that counts.
        unsound: names of statistics that no forward could use, with what is wrong.
        equally_often: whether all layers that are judged were updated equally often.
    """

    name: str
    record: LayerRecord
    provenance: Provenance
    times: int | Literal["forwards"]
    steps: int
    compiled: bool
    elsewhere: int
    replaced: bool
    counted: int | None
    unsound: list[tuple[str, str]]
    equally_often: bool = True

    @classmethod
    def from_log(
        cls,
        name: str,
        layer: nn.Module,
        now: nn.Module | None,
        log: UpdateLog,
        times: int | Literal["forwards"],
        steps: int = 1,
    ) -> LayerResult:
        """Conclude from the log what became of a layer.

        Args:
            name: the layer's qualified name.
            layer: the module that held the name at the start.
            now: the one that holds it now; None if it is gone.
            log: what was seen.
            times: how many updates there should be in each of the steps.
            steps: how many such steps there were.
        """
        record = log.record_of(layer)
        statistics = StatisticsSnapshot.from_layer(layer if now is None else now)
        return cls(
            name=name,
            record=record,
            provenance=record.provenance_of(statistics),
            times=times,
            steps=steps,
            compiled=log.compiled,
            elsewhere=_elsewhere(record, now),
            replaced=now is not layer,
            counted=_counted(record, now),
            unsound=[] if now is None else list(_unsound(now)),
        )

    @property
    def unseen(self) -> bool:
        """Tell whether it ran where forwards cannot be seen."""
        scripted = isinstance(self.record.layer, torch.jit.ScriptModule)
        hidden = self.compiled or self.replaced or self.record.unreadable or scripted
        moved = self.record.unreadable or bool(self.provenance.written)
        return hidden and (moved or not self.record.updates)

    @property
    def by_counter(self) -> bool:
        """Tell whether its counter alone can tell how often it was updated."""
        return self.unseen and self.counted is not None

    @property
    def unknowable(self) -> bool:
        """Tell whether nothing can tell how often it was updated, though it was."""
        return self.unseen and self.counted is None and bool(self.provenance.written)

    @property
    def updates(self) -> int:
        """Return how many updates the statistics have had."""
        return max(0, self.counted or 0) if self.by_counter else self.provenance.updates

    @property
    def expected(self) -> int | None:
        """Return how many updates there should be; None if that is one a forward."""
        return None if self.times == "forwards" else self.times * self.steps

    @property
    def times_made(self) -> int | None:
        """Return which `times` there were; None if the steps differ in it."""
        return self.updates // self.steps if self.updates % self.steps == 0 else None

    @property
    def own_updates(self) -> int:
        """Return how many updates of its own tensors it made, including those that were undone."""
        return self.record.updates - self.elsewhere

    @property
    def undone(self) -> bool:
        """Tell whether all of its updates were undone, as when a step is skipped."""
        return self.provenance == Provenance() and self.own_updates > 0 and not self.unseen

    @property
    def written(self) -> bool:
        """Tell whether something else wrote to the statistics, too."""
        return bool(self.provenance.written) and not self.unseen

    @property
    def counts_wrongly(self) -> bool:
        """Tell whether it was updated another number of times."""
        if self.unknowable:
            return False
        if self.expected is None:
            return not self.undone and (self.updates == 0 or self.record.idle > 0)
        return self.updates != self.expected and not (self.undone and self.expected > 0)

    @property
    def lacks_updates(self) -> bool:
        """Tell whether it was seen to be updated less often than expected."""
        few = self.expected is None or self.updates < self.expected
        return self.counts_wrongly and few and not self.unseen

    @property
    def uncounted(self) -> bool:
        """Tell whether its counter does not count its updates."""
        by_calls = self.provenance.by_calls > 0 and self.counted not in (
            None,
            self.provenance.updates,
        )
        return by_calls or self.provenance.uncounted > 0

    @property
    def holds(self) -> bool:
        """Tell whether nothing is wrong with it."""
        return not any(True for _ in self.changes())

    def changes(self) -> Iterator[Change]:
        """Yield what is wrong with it."""
        told = list(self._told_of_counts())
        if told:
            yield self._change("; ".join(told))
        for wrong in self.provenance.wrong if not self.unseen else ():
            yield self._change(f"update {wrong.update}: {wrong.text}", wrong.name)
        for name, text in self.unsound:
            yield self._change(text, name)

    def _told_of_counts(self) -> Iterator[str]:
        provenance = self.provenance
        if self.counts_wrongly:
            expected = "one a forward" if self.expected is None else f"expected {self.expected}"
            idle = f", {_forwards(self.record.idle)} without" if self.record.idle else ""
            yield f"{_updates(self.updates)}{idle}, {expected}"
        told = (
            (provenance.recomputed, "in backward"),
            (provenance.repeated - provenance.recomputed, "with a batch that had updated already"),
            (provenance.in_eval, "in eval"),
            (provenance.miscounted, "that num_batches_tracked counted as more or less than one"),
        )
        for count, how in told if not self.unseen else ():
            if count > 0:
                yield f"{_updates(count)} {how}"
        if self.written:
            yield "written to besides its updates"

    def _change(self, text: str, tensor: str = "") -> Change:
        name = ".".join(part for part in (self.name, tensor) if part)
        return Change(name=name, layer=self.name, kind="update", text=text)


def names_of(results: list[LayerResult]) -> str:
    """Return the layers' names as a sentence has them."""
    return name_list([each.name for each in results])


def was(results: list[LayerResult]) -> str:
    """Return the verb for the layers."""
    return "was" if len(results) == 1 else "were"


def _elsewhere(record: LayerRecord, now: nn.Module | None) -> int:
    """Return how many updates were of tensors that functional_call put there, and took away."""
    returned = now is not None and record.history.origin.is_of(statistics_of(now))
    return record.elsewhere if returned else 0


def _counted(record: LayerRecord, now: nn.Module | None) -> int | None:
    if now is None or not counts_batches(now):
        return None
    old, new = record.history.origin.number, StatisticsSnapshot.from_layer(now).number
    return None if old is None or new is None else new - old


def _unsound(layer: nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in statistics_of(layer).items():
        if name not in STATISTICS or not is_readable(value):
            continue
        values = value.detach().flatten().double()
        bad, negative = ~values.isfinite(), values < 0
        if bool(bad.any()):
            yield name, f"{int(bad.sum())} of {len(bad)} values are not finite"
        elif name == "running_var" and bool(negative.any()):
            yield name, f"{int(negative.sum())} of {len(bad)} values are negative"


def _updates(count: int) -> str:
    return f"{count} update{'' if count == 1 else 's'}"


def _forwards(count: int) -> str:
    return f"{count} forward{'' if count == 1 else 's'}"
