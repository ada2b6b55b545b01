"""What the record of one layer notes of each forward, load and collective."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants.invariants.bn_updates.layer_forward import EndedForward, LayerForward
from pytest_bninvariants.invariants.bn_updates.layer_record import LayerRecord
from pytest_bninvariants.invariants.bn_updates.state_history import Provenance
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import (
    StatisticsReader,
    StatisticsSnapshot,
    read_statistics,
)
from pytest_bninvariants.verdict import Place

PLACE = Place(file="train.py", line=3, function="step", call="load_state_dict()")


class Followed:
    """A layer with its record."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        self.layer: Any = nn.BatchNorm1d(2) if layer is None else layer
        self.reader = StatisticsReader(self.layer)
        self.record = LayerRecord.begin(self.reader, self.now, is_to_train=True)

    @property
    def now(self) -> StatisticsSnapshot:
        (state,) = read_statistics([self.reader])
        return state

    def forward(self, steps: int = 0, outer: object = 0, **changes: Any) -> EndedForward:
        """Run the layer, and note the forward but for what is given."""
        x = torch.randn(4, 2)
        forward = LayerForward.begin(self.reader, x)
        if self.layer.training:
            forward.add_part(x)
        self.layer(x)
        unread = forward.end(None, failed=False)
        ended = unread.on_host(unread.pieces)._replace(**changes)
        self.record.note_forward(ended, steps, outer, is_right=True)
        return ended


def test_an_update_is_counted_by_forward_and_by_step() -> None:
    followed = Followed()
    for steps, outer in ((0, "a"), (0, "a"), (1, "b")):
        followed.forward(steps, outer)
    record = followed.record
    assert (record.forwards, record.updates, record.in_eval, record.idle) == (3, 3, 0, 0)
    assert (record.by_forward.number, record.by_forward.largest) == (2, 2)
    assert (record.by_step.number, record.by_step.largest) == (2, 2)
    assert record.provenance_of(followed.now).updates == 3


def test_an_update_in_backward_belongs_to_no_forward_of_the_model() -> None:
    followed = Followed()
    followed.forward(in_backward=True)
    assert (followed.record.by_forward.number, followed.record.by_step.number) == (0, 1)
    assert followed.record.provenance_of(followed.now).recomputed == 1


def test_forwards_in_eval_are_counted_by_step_until_an_update() -> None:
    followed = Followed()
    for training, steps in ((False, 0), (False, 1), (True, 1), (False, 1), (False, 2)):
        followed.layer.train(training)
        followed.forward(steps)
    record = followed.record
    assert (record.in_eval, record.updates, record.idle) == (4, 1, 0)
    assert record.eval_by_step.number == 2
    assert record.eval_by_step.group == 2


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"tracks": False}, (1, 1, 0)),
        ({"momentum": 0.0}, (1, 0, 1)),
        ({"momentum": 0.0, "tracks": False}, (1, 1, 0)),
        ({"has_known_forward": False}, (1, 0, 0)),
        ({"by_call": True}, (1, 0, 0)),
        ({"training": False}, (1, 0, 0)),
        ({"parts": 0, "training": False}, (0, 0, 0)),
    ],
)
def test_a_forward_that_moves_nothing_is_idle_if_it_was_to(
    changes: dict[str, Any], counts: tuple[int, int, int]
) -> None:
    followed = Followed()
    x = torch.randn(4, 2)
    forward = LayerForward.begin(followed.reader, x)
    forward.add_part(x)
    unread = forward.end(None, failed=False)
    ended = unread.on_host(unread.pieces)
    if "tracks" not in changes and "momentum" not in changes and changes.get("parts") is None:
        changes = {"has_known_forward": False, **changes}
    followed.record.note_forward(ended._replace(**changes), 0, 0, is_right=True)
    record = followed.record
    assert record.updates == 0
    assert (record.idle, record.without_tracking, record.by_momentum_zero) == counts


def test_a_known_forward_with_a_batch_is_an_update_even_if_it_moves_nothing() -> None:
    followed = Followed()
    ended = followed.forward()
    still = ended._replace(before=ended.after)
    followed.record.note_forward(still, 0, 0, is_right=True)
    assert followed.record.updates == 2
    followed.record.note_forward(still._replace(failed=True), 0, 0, is_right=True)
    assert (followed.record.updates, followed.record.forwards) == (2, 3)


def test_statistics_that_cannot_be_read_are_noted_as_that() -> None:
    followed = Followed()
    ended = followed.forward()
    for changes in ({"before": ended.before.unread}, {"after": ended.after.unread}):
        record = Followed().record
        record.note_forward(ended._replace(**changes), 0, 0, is_right=True)
        assert record.unreadable
        assert record.updates == 0
    assert not followed.record.unreadable


def test_what_wrote_besides_updates_is_told() -> None:
    followed = Followed()
    followed.forward()
    assert followed.record.provenance_of(followed.now).written == ""
    followed.layer.running_mean.add_(1)
    found = followed.record.provenance_of(followed.now)
    assert (found.written, found.updates) == ("in-place", 1)
    followed.layer.reset_running_stats()
    assert followed.record.provenance_of(followed.now) == Provenance()
    other = Followed()
    other.layer.running_mean.fill_(3)
    moved = Followed(other.layer)
    moved.layer.reset_running_stats()
    assert moved.record.provenance_of(moved.now) == Provenance(written="reset")


@pytest.mark.parametrize(
    ("by_calls", "by_call", "written"),
    [(0, False, "in-place"), (0, True, ""), (1, False, ""), (1, True, "")],
)
def test_a_call_may_move_the_counter_by_itself(by_calls: int, by_call: bool, written: str) -> None:
    followed = Followed()
    followed.forward()
    followed.record.history.add(followed.now, Provenance(updates=1, by_calls=by_calls))
    followed.layer.num_batches_tracked.add_(1)
    assert followed.record.provenance_of(followed.now, by_call=by_call).written == written


def test_a_load_of_other_statistics_is_told_and_one_of_those_before_undoes() -> None:
    followed = Followed()
    before = {name: each.clone() for name, each in followed.layer.state_dict().items()}
    followed.forward()
    followed.layer.load_state_dict(before)
    followed.record.note_load(followed.now, PLACE)
    assert followed.record.provenance_of(followed.now) == Provenance()
    followed.forward()
    followed.layer.running_mean.fill_(5)
    followed.record.note_load(followed.now, PLACE)
    found = followed.record.provenance_of(followed.now)
    assert (found.written, found.written_at, found.updates) == ("loaded", PLACE, 1)


def test_a_load_of_a_new_layers_statistics_forgets_the_updates_before() -> None:
    layer = nn.BatchNorm1d(2)
    layer.running_mean.fill_(3)  # type: ignore[union-attr]
    followed = Followed(layer)
    followed.forward()
    layer.reset_running_stats()
    followed.record.note_load(followed.now, PLACE)
    found = followed.record.provenance_of(followed.now)
    assert found == Provenance(written="loaded", written_at=PLACE)


def test_a_collective_breaks_nothing() -> None:
    followed = Followed()
    followed.forward()
    followed.layer.running_mean.add_(1)
    followed.record.note_collective(followed.now)
    found = followed.record.provenance_of(followed.now)
    assert (found.written, found.updates) == ("", 1)


def test_a_forward_that_starts_a_new_average_forgets_what_was_written() -> None:
    for momentum, written in ((1.0, ""), (None, ""), (0.1, "reset")):
        layer = nn.BatchNorm1d(2, momentum=momentum)
        layer.running_mean.fill_(3)  # type: ignore[union-attr]
        followed = Followed(layer)
        layer.reset_running_stats()
        followed.forward()
        found = followed.record.provenance_of(followed.now)
        assert (found.written, found.updates) == (written, 1)


def test_updates_of_other_tensors_are_counted_beside() -> None:
    followed = Followed()
    followed.forward()
    assert followed.record.updates_elsewhere == 0
    followed.layer.running_mean = torch.zeros(2)
    followed.forward()
    assert followed.record.updates_elsewhere == 1


def test_a_dummy_step_counts_the_updates_before_it() -> None:
    followed = Followed()
    followed.forward(steps=0)
    followed.forward(steps=0)
    followed.record.note_dummy_step(1)
    assert followed.record.in_dummy_steps == 0
    followed.record.note_dummy_step(0)
    assert followed.record.in_dummy_steps == 2


@pytest.mark.parametrize(
    ("change", "momentum", "parts", "by_call", "uncounted", "miscounted"),
    [
        (1, 0.1, 1, False, 0, 0),
        (0, 0.1, 1, False, 1, 0),
        (0, None, 1, False, 1, 1),
        (2, 0.1, 1, False, 0, 1),
        (2, 0.1, 2, False, 0, 0),
        (2, 0.1, 1, True, 0, 0),
    ],
)
def test_the_counter_is_to_count_each_update_once(
    change: int,
    momentum: float | None,
    parts: int,
    by_call: bool,
    uncounted: int,
    miscounted: int,
) -> None:
    followed = Followed()
    ended = followed.forward()
    followed.layer.num_batches_tracked.add_(change - 1)
    counted = ended._replace(
        after=followed.now, momentum=momentum, parts=parts, by_call=by_call, counts=True
    )
    other = Followed()
    other.record.note_forward(counted, 0, 0, is_right=True)
    found = other.record.provenance_of(counted.after)
    assert (found.uncounted, found.miscounted) == (uncounted, miscounted)


def test_a_batch_that_is_used_twice_before_a_step_is_repeated() -> None:
    followed = Followed()
    x = torch.randn(4, 2)

    def update(steps: int) -> None:
        forward = LayerForward.begin(followed.reader, x)
        forward.add_part(x)
        followed.layer(x)
        unread = forward.end(None, failed=False)
        followed.record.note_forward(unread.on_host(unread.pieces), steps, 0, is_right=True)

    for steps, repeated in ((0, 0), (1, 0), (1, 1)):
        update(steps)
        assert followed.record.provenance_of(followed.now).repeated == repeated
