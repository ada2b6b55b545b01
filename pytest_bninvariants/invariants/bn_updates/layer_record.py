"""The record of one BN layer during a step: its forwards, and which of them were updates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from pytest_bninvariants.invariants.bn_updates.layer_forward import EndedForward
from pytest_bninvariants.invariants.bn_updates.reference_check import check_update
from pytest_bninvariants.invariants.bn_updates.state_history import (
    BatchKey,
    Provenance,
    StatisticsHistory,
)
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import (
    StatisticsReader,
    StatisticsSnapshot,
    values_digest,
)
from pytest_bninvariants.invariants.bn_updates.update_groups import UpdateGroups
from pytest_bninvariants.selection.bn_layers import holds_weight_as_buffer
from pytest_bninvariants.verdict import Place


@dataclass(slots=True)
class LayerRecord:
    """What one BN layer did.

    Args:
        layer: the layer.
        reader: copies its statistics.
        history: the states of its statistics, and what led to each.
        is_to_train: whether one of its parameters requires a gradient at the start or the end.
        began_in_training: whether it was in training mode when the step began, if it can train.
        updates: how many updates it made, including those that were undone.
        forwards: how many forwards it ran.
        idle: how many of its forwards normalised with batch statistics and updated nothing.
        by_momentum_zero: how many of the idle ones updated nothing because momentum was 0.
        without_tracking: how many of them did so because track_running_stats was False.
        updates_elsewhere: how many updates went to other tensors than those at the start.
        in_eval: how many forwards ran in eval.
        by_forward: its updates in each forward of the model.
        by_step: its updates between two steps of an optimizer.
        eval_by_step: its forwards in eval between two steps, where no update came between them.
        in_dummy_steps: how many updates it made in steps in which all gradients were zero.
        unreadable: whether its statistics could not be read at some forward.
        put_in_eval: where it was last put in eval.
    """

    layer: nn.Module
    reader: StatisticsReader
    history: StatisticsHistory
    is_to_train: bool
    began_in_training: bool
    updates: int = 0
    forwards: int = 0
    idle: int = 0
    by_momentum_zero: int = 0
    without_tracking: int = 0
    updates_elsewhere: int = 0
    in_eval: int = 0
    by_forward: UpdateGroups = field(default_factory=UpdateGroups)
    by_step: UpdateGroups = field(default_factory=UpdateGroups)
    eval_by_step: UpdateGroups = field(default_factory=UpdateGroups)
    in_dummy_steps: int = 0
    unreadable: bool = False
    put_in_eval: Place | None = None

    @classmethod
    def begin(
        cls, reader: StatisticsReader, start: StatisticsSnapshot, *, is_to_train: bool
    ) -> LayerRecord:
        """Return the record of a layer when the step begins, with its statistics on the host."""
        layer = reader.layer
        in_training = layer.training and not holds_weight_as_buffer(layer)
        return cls(layer, reader, StatisticsHistory.begin(start), is_to_train, in_training)

    def provenance_of(self, state: StatisticsSnapshot, *, by_call: bool = False) -> Provenance:
        """Return what led to a state of the statistics.

        Args:
            state: the state.
            by_call: whether a call of torch's function is about to update it.
        """
        earlier = self.history.find(state)
        if earlier is not None:
            return earlier
        latest, provenance = self.history.latest
        # code that calls torch's function moves the counter itself, before the call or after it
        only_counter_moved = state.differs_from(latest) == {"num_batches_tracked"}
        if only_counter_moved and (by_call or provenance.by_calls):
            return provenance
        if state.is_new:
            return Provenance(written="reset")
        return replace(provenance, written="in-place")

    def note_dummy_step(self, step: int) -> None:
        """Note that all gradients of a step, counted from 0, were zero."""
        if self.by_step.group == step:
            self.in_dummy_steps += self.by_step.latest

    def note_load(self, now: StatisticsSnapshot, place: Place | None) -> None:
        """Note that a load at this place has set the statistics to these."""
        provenance = self.history.find(now)
        if provenance is None:
            before = Provenance() if now.is_new else self.history.latest[1]
            provenance = replace(before, written="loaded", written_at=place)
        self.history.add(now, provenance)

    def note_collective(self, now: StatisticsSnapshot) -> None:
        """Note that a collective has set the statistics to these, which breaks nothing."""
        self.history.add(now, self.history.find(now) or self.history.latest[1])

    def note_forward(
        self, forward: EndedForward, steps: int, outer: object, *, is_right: bool
    ) -> None:
        """Note a forward that has ended, and was read on the host.

        Args:
            forward: the forward.
            steps: how many steps of an optimizer came before it.
            outer: what identifies the forward of the model that it is part of.
            is_right: whether it is known that an update that it made was right.
        """
        self.forwards += 1
        if not forward.training:
            self.in_eval += 1
        if not (forward.before.readable and forward.after.readable):
            self.unreadable = True
            return
        moved = forward.moved
        if forward.failed and not moved:
            return
        if self._is_update(forward, moved):
            self._note_update(forward, steps, is_right=is_right)
            self.by_step.add(steps)
            self.eval_by_step.drop(steps)
            if not forward.in_backward:
                self.by_forward.add(outer)
        else:
            self._note_idle(forward)
            if not forward.training and self.by_step.group != steps:
                self.eval_by_step.add(steps)

    def _is_update(self, forward: EndedForward, moved: set[str]) -> bool:
        """Tell whether a forward was an update of the statistics."""
        if forward.momentum == 0 and not moved - {"num_batches_tracked"}:
            return False
        meant = forward.parts > 0 and forward.tracks
        return bool(moved) or (meant and forward.has_known_forward and not forward.by_call)

    def _note_idle(self, forward: EndedForward) -> None:
        """Note a forward that updated nothing."""
        if forward.parts or forward.training:
            self.idle += 1
            if not forward.tracks:
                self.without_tracking += 1
            elif forward.momentum == 0:
                self.by_momentum_zero += 1
        if forward.after.differs_from(self.history.latest[0]):
            self.history.add(forward.after, self._provenance_before(forward))

    def _note_update(self, forward: EndedForward, steps: int, *, is_right: bool) -> None:
        self.updates += 1
        if not self.history.origin.has_tensors(forward.before.tensors):
            self.updates_elsewhere += 1
        old = self._provenance_before(forward)
        self.history.add(forward.after, _advance(old, forward, steps, is_right=is_right))

    def _provenance_before(self, forward: EndedForward) -> Provenance:
        """Return what led to the statistics before a forward.

        If the forward starts a new average, no earlier update or write matters.
        """
        momentum, state = forward.momentum, forward.before
        if (momentum is None or momentum == 1) and state.is_new:
            return Provenance()
        return self.provenance_of(state, by_call=forward.by_call)


def _advance(old: Provenance, forward: EndedForward, steps: int, *, is_right: bool) -> Provenance:
    """Return what led to the statistics after an update."""
    number = old.updates + 1
    check = check_update(forward, number, is_right=is_right)
    batch = None
    if check.batch is not None:
        batch = BatchKey(steps, values_digest(check.batch.key), check.batch.values)
    counted = None if forward.by_call else check.counter_change
    right_counts = {None, 1, forward.parts or 1} | ({0} if forward.momentum is not None else set())
    if check.wrong:
        old = old.with_wrong(check.wrong, is_guess=check.is_guess)
    return replace(
        old,
        updates=number,
        recomputed=old.recomputed + forward.in_backward,
        repeated=old.repeated + (batch in old.batches),
        in_eval=old.in_eval + (not forward.training),
        by_calls=old.by_calls + forward.by_call,
        uncounted=old.uncounted + (counted == 0),
        miscounted=old.miscounted + (counted not in right_counts),
        rounded_away=old.rounded_away + check.rounded_away,
        constant=old.constant + check.is_constant,
        unjudged=old.unjudged + (check.batch is None),
        by_custom_forward=old.by_custom_forward + (check.batch is None and check.is_guess),
        places=(*old.places, forward.place) if old.wants_place else old.places,
        batches=old.with_batch(batch),
    )
