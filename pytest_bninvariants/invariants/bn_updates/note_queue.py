"""What was seen of BN layers and waits to be noted: it is read on the host and judged together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from pytest_bninvariants.invariants.bn_updates.layer_forward import EndedForward, UnreadForward
from pytest_bninvariants.invariants.bn_updates.layer_record import LayerRecord
from pytest_bninvariants.invariants.bn_updates.quick_check import find_surely_right
from pytest_bninvariants.invariants.bn_updates.statistics_snapshot import (
    StatisticsReading,
    StatisticsSnapshot,
)
from pytest_bninvariants.snapshot.reads.together import read_together

# how much may wait, so that memory does not grow with the length of a step
_MOST_NOTES, _MOST_CHANNELS = 1024, 2**17


class ForwardNote(NamedTuple):
    """A forward that a layer's record is to note.

    Args:
        record: the record.
        forward: the forward.
        steps: how many steps of an optimizer came before it.
        outer: what identifies the forward of the model that it is part of.
    """

    record: LayerRecord
    forward: UnreadForward
    steps: int
    outer: object

    @property
    def channels(self) -> int:
        """Return how many channels it keeps numbers of."""
        return 0 if self.forward.batch is None else self.forward.batch.channels

    @property
    def pieces(self) -> list[Tensor]:
        """Return what is to be read on the host."""
        return self.forward.pieces

    def on_host(self, pieces: Iterator[Tensor]) -> ReadNote:
        """Return the note, read."""
        forward = self.forward.on_host(pieces)

        def make(is_right: bool) -> None:
            self.record.note_forward(forward, self.steps, self.outer, is_right=is_right)

        return ReadNote(forward, make)


class StateNote(NamedTuple):
    """Statistics that somebody is to be told.

    Args:
        state: the statistics.
        tell: whom to tell.
    """

    state: StatisticsReading
    tell: Callable[[StatisticsSnapshot], None]

    @property
    def channels(self) -> int:
        """Return how many channels it keeps numbers of, of which loads and collectives have few."""
        return 0

    @property
    def pieces(self) -> list[Tensor]:
        """Return what is to be read on the host."""
        return self.state.pieces

    def on_host(self, pieces: Iterator[Tensor]) -> ReadNote:
        """Return the note, read."""
        state = self.state.on_host(pieces)
        return ReadNote(None, lambda is_right: self.tell(state))


class ReadNote(NamedTuple):
    """A note that was read on the host.

    Args:
        forward: the forward that it is about; None if it is about none.
        make: makes the note; gets whether the forward is surely right.
    """

    forward: EndedForward | None
    make: Callable[[bool], None]


class NoteQueue:
    """Notes in the order in which they are to be made; the host waits for devices in `settle` only.

    The caller must hold `undisturbed()`.
    """

    def __init__(self) -> None:
        self._notes: list[ForwardNote | StateNote] = []
        self._channels = 0
        self._lock = threading.RLock()

    def add(self, note: ForwardNote | StateNote) -> None:
        """Add a note; make all of them if there are too many to keep."""
        with self._lock:
            self._notes.append(note)
            self._channels += note.channels
            if len(self._notes) >= _MOST_NOTES or self._channels >= _MOST_CHANNELS:
                self.settle()

    def settle(self) -> None:
        """Read what the notes are about, and make them."""
        with self._lock:
            notes, self._notes, self._channels = self._notes, [], 0
            pieces = iter(read_together([piece for note in notes for piece in note.pieces]))
            read = [note.on_host(pieces) for note in notes]
            surely_right = find_surely_right([each.forward for each in read if each.forward])
            for each in read:
                each.make(id(each.forward) in surely_right)
