"""The result for one BN layer: what became of its statistics in a step, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import nn

from pytest_bninvariants.diagnosis.wording import counted, name_list
from pytest_bninvariants.invariants.bn_updates.layer_record import LayerRecord
from pytest_bninvariants.invariants.bn_updates.state_history import Provenance
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import (
    StatisticsReader,
    StatisticsSnapshot,
    read_statistics,
    statistics_of,
)
from pytest_bninvariants.invariants.bn_updates.update_log import UpdateLog
from pytest_bninvariants.selection.bn_layers import (
    STATISTICS,
    counts_batches,
    holds_weight_as_buffer,
)
from pytest_bninvariants.selection.submodules import modules_by_name
from pytest_bninvariants.snapshot.reads.statistics_state import unusable_values
from pytest_bninvariants.verdict import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """One layer at the end of a step.

    Args:
        name: its qualified name.
        record: what it did.
        provenance: what led to its statistics.
        times: how many updates each of the steps should have made, or `forwards`.
        steps: how many such steps there were.
        compiled: whether compiled code ran.
        optimizer_steps: how many steps of an optimizer there were, whatever `times` counts for.
        optimizers: how many optimizers made them.
        updates_elsewhere: how many updates went to tensors that the layer had for one call only.
        replaced: whether another module has its name now, or no module has.
        type_now: the class name of the module that has it; None if no module has.
        counter_change: by how much its counter moved; None if it has no counter that counts.
        unusable: names of statistics that no forward can use, with what is wrong.
        equally_often: whether all judged layers were updated equally often, except for those that
            one forward of the model calls several times.
    """

    name: str
    record: LayerRecord
    provenance: Provenance
    times: int | Literal["forwards"]
    steps: int
    compiled: bool
    optimizer_steps: int
    optimizers: int
    updates_elsewhere: int
    replaced: bool
    type_now: str | None
    counter_change: int | None
    unusable: list[tuple[str, str]]
    equally_often: bool = True

    @classmethod
    def from_log(
        cls,
        name: str,
        layer: nn.Module,
        now: nn.Module | None,
        statistics: StatisticsSnapshot,
        log: UpdateLog,
        times: int | Literal["forwards"],
        steps: int = 1,
    ) -> LayerResult:
        """Return the result for a layer, from the log of the step.

        Args:
            name: the layer's qualified name.
            layer: the module that had the name at the start.
            now: the module that has it now; None if it is gone.
            statistics: the statistics at the end, of what has the name now, if anything has.
            log: the log of the step.
            times: how many updates each of the steps should have made.
            steps: how many such steps there were.
        """
        record = log.record_of(layer)
        return cls(
            name=name,
            record=record,
            provenance=record.provenance_of(statistics),
            times=times,
            steps=steps,
            compiled=log.compiled,
            optimizer_steps=log.steps,
            optimizers=log.optimizers,
            updates_elsewhere=_updates_elsewhere(record, now),
            replaced=now is not layer,
            type_now=None if now is None else type(now).__name__,
            counter_change=_counter_change(record, now, statistics),
            unusable=[] if now is None else list(_unusable(statistics)),
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
        """Tell whether only its counter shows how often it was updated."""
        return self.unseen and self.counter_change is not None

    @property
    def unknowable(self) -> bool:
        """Tell whether it was updated, and nothing shows how often."""
        return self.unseen and self.counter_change is None and bool(self.provenance.written)

    @property
    def updates(self) -> int:
        """Return how many updates the statistics have had."""
        return max(0, self.counter_change or 0) if self.by_counter else self.provenance.updates

    @property
    def expected(self) -> int | None:
        """Return how many updates there should be; None if that is one per forward."""
        return None if self.times == "forwards" else self.times * self.steps

    @property
    def updates_per_step(self) -> int | None:
        """Return how many updates each step of an optimizer had; None if they differ.

        Where several optimizers step after one forward, only the first of them has updates.
        """
        each, rest = divmod(self.updates, max(self.optimizer_steps, 1))
        if self.unseen or self.optimizer_steps <= 1:
            return each if not rest else None
        groups = self.record.by_step
        fits = groups.number == self.optimizer_steps and groups.common_size == each
        return each if fits and not rest else None

    @property
    def is_one_per_step(self) -> bool:
        """Tell whether it was updated once for each of several steps of an optimizer."""
        return self.optimizer_steps > 1 and self.updates_per_step == 1

    @property
    def steps_in_eval(self) -> int:
        """Return how many steps of an optimizer it ran in eval for, without an update."""
        groups = self.record.eval_by_step
        after_the_last = bool(groups.latest) and groups.group == self.optimizer_steps
        return groups.number - after_the_last

    @property
    def shared_by(self) -> int:
        """Return how many times one forward of the model updated it, if that was more than once."""
        most = self.record.by_forward.largest
        return most if most > 1 and not self.unseen else 0

    @property
    def own_updates(self) -> int:
        """Return how many updates of its own tensors it made, including those that were undone."""
        return self.record.updates - self.updates_elsewhere

    @property
    def undone(self) -> bool:
        """Tell whether all of its updates were undone, as when a step is skipped."""
        return self.provenance == Provenance() and self.own_updates > 0 and not self.unseen

    @property
    def written(self) -> bool:
        """Tell whether something other than its updates wrote to the statistics."""
        return bool(self.provenance.written) and not self.unseen

    @property
    def is_to_update(self) -> bool:
        """Tell whether somebody wants its statistics updated, or it ran as if that were so.

        What is frozen by requires_grad=False and ran in eval only is nobody's to update.
        """
        record = self.record
        can_train = not holds_weight_as_buffer(record.layer)
        ran_in_training = can_train and record.forwards > record.in_eval
        return bool(record.is_to_train or record.updates or self.updates or ran_in_training)

    @property
    def counts_wrongly(self) -> bool:
        """Tell whether it was updated another number of times than expected."""
        if self.unknowable or self.undone:
            return False
        if self.expected is None:
            return self.updates == 0 or self.record.idle > 0
        return self.updates != self.expected

    @property
    def lacks_updates(self) -> bool:
        """Tell whether it was seen to be updated less often than expected."""
        few = self.expected is None or self.updates < self.expected
        return self.counts_wrongly and few and not self.unseen

    @property
    def uncounted(self) -> bool:
        """Tell whether its counter does not count its updates."""
        provenance, change = self.provenance, self.counter_change
        by_calls = provenance.by_calls > 0 and change not in (None, provenance.updates)
        return by_calls or provenance.uncounted > 0

    @property
    def holds(self) -> bool:
        """Tell whether nothing is wrong with it."""
        return not any(True for _ in self.changes())

    def changes(self) -> Iterator[Change]:
        """Yield what is wrong with it."""
        counts = list(self._count_texts())
        if counts:
            yield self._change("; ".join(counts))
        for wrong in self.provenance.wrong if not self.unseen else ():
            yield self._change(f"update {wrong.update}: {wrong.text}", wrong.name)
        for name, text in self.unusable:
            yield self._change(text, name)

    def _count_texts(self) -> Iterator[str]:
        """Yield what is wrong with the number of updates, and with how they were made."""
        provenance = self.provenance
        if self.counts_wrongly:
            expected = "one a forward" if self.expected is None else f"expected {self.expected}"
            idle = f", {counted(self.record.idle, 'forward')} without" if self.record.idle else ""
            yield f"{counted(self.updates, 'update')}{idle}, {expected}"
        faults = (
            (provenance.recomputed, "in backward"),
            (provenance.repeated - provenance.recomputed, "with a batch that it had already used"),
            (provenance.in_eval, "in eval"),
            (provenance.miscounted, "that num_batches_tracked counted as more or less than one"),
        )
        for count, fault in faults if not self.unseen else ():
            if count > 0:
                yield f"{counted(count, 'update')} {fault}"
        if self.written:
            yield "written to outside its updates"

    def _change(self, text: str, tensor: str = "") -> Change:
        name = ".".join(part for part in (self.name, tensor) if part)
        return Change(name=name, layer=self.name, kind="update", text=text)


def results_from_log(
    layers: Mapping[str, tuple[str, nn.Module]],
    model: nn.Module,
    log: UpdateLog,
    times: int | Literal["forwards"],
    steps: int = 1,
) -> list[LayerResult]:
    """Return the results for layers, from the log of the step; the host waits for all together.

    The caller must hold `undisturbed()`.

    Args:
        layers: the layers with their names, by key.
        model: the model that they are in.
        log: the log of the step.
        times: how many updates each of the steps should have made.
        steps: how many such steps there were.
    """
    log.settle()
    now = modules_by_name(model)
    present = [now.get(key, layer) for key, (_, layer) in layers.items()]
    statistics = read_statistics(map(StatisticsReader, present))
    return [
        LayerResult.from_log(name, layer, now.get(key), each, log, times, steps)
        for (key, (name, layer)), each in zip(layers.items(), statistics, strict=True)
    ]


def names_of(results: list[LayerResult]) -> str:
    """Return the layers' names as a sentence has them."""
    return name_list([each.name for each in results])


def names_were(results: list[LayerResult]) -> str:
    """Return the layers' names with a verb, such as `bn1 was` or `bn1 and bn2 were`."""
    return f"{names_of(results)} {'was' if len(results) == 1 else 'were'}"


def _updates_elsewhere(record: LayerRecord, now: nn.Module | None) -> int:
    """Return how many updates went to tensors that the layer had for a functional_call only."""
    has_its_own_again = now is not None and record.history.origin.has_tensors(statistics_of(now))
    return record.updates_elsewhere if has_its_own_again else 0


def _counter_change(
    record: LayerRecord, now: nn.Module | None, statistics: StatisticsSnapshot
) -> int | None:
    if now is None or not counts_batches(now):
        return None
    old, new = record.history.origin.counter, statistics.counter
    return None if old is None or new is None else new - old


def _unusable(statistics: StatisticsSnapshot) -> Iterator[tuple[str, str]]:
    for name in STATISTICS:
        values = statistics.values(name)
        if values is None or not len(values):
            continue
        least, most = (float(each) for each in values.aminmax())
        if not (isfinite(least) and isfinite(most)) or (name == "running_var" and least < 0):
            yield name, unusable_values(name, values)
