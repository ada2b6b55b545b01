"""Watch ranks until all have ended, and end those that do not by themselves."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pytest_bninvariants.ranks.messages import Inbox, Message
from pytest_bninvariants.ranks.processes import RankProcesses
from pytest_bninvariants.ranks.stacks import StackFrame, main_stack

START_SECONDS = 120.0
"""How long ranks may take to import what they need and to find each other."""

GRACE_SECONDS = 5.0
"""How long the other ranks may go on once one has failed, to report the same or more."""

_EXIT_SECONDS = 15.0  # to leave the process group, and for what runs at exit, such as coverage
_STACK_SECONDS = 3.0
_POLL_SECONDS = 0.05


@dataclass(slots=True)
class RankRecord:
    """What one rank said and how it ended.

    Args:
        rank: which one.
        folder: where it writes its output and its stack.
        messages: what it said.
        said: the kinds of these messages.
        hung_up: whether no more can come.
        exit_code: its exit code, negative if a signal ended it; None while it runs.
        ended_at: when it was seen to have ended, in seconds since the epoch.
        stopped: why it was ended, before it had done what it had to; empty if it was not.
        stack: where it was then, the innermost frame first.
        errors_before: how much it had written to stderr when it joined the others.
    """

    rank: int
    folder: Path
    messages: list[Message] = field(default_factory=list)
    said: set[str] = field(default_factory=set)
    hung_up: bool = False
    exit_code: int | None = None
    ended_at: float = 0.0
    stopped: str = ""
    stack: list[StackFrame] = field(default_factory=list)
    errors_before: int = 0

    @property
    def died(self) -> str:
        """Return how it ended too early by itself; empty if it did not."""
        if "ended" in self.said or self.stopped or self.exit_code is None:
            return ""
        if self.exit_code < 0:
            return f"was killed by {_signal_name(-self.exit_code)}"
        return f"exited with code {self.exit_code} before its test had ended"

    @property
    def errors(self) -> str:
        """Return what it wrote to stderr since it joined, and pytest did not capture."""
        return _read(stderr_of(self.folder, self.rank))[self.errors_before :]


def stderr_of(folder: Path, rank: int) -> Path:
    """Return the file with what a rank writes to stderr."""
    return folder / f"rank{rank}.stderr"


def stack_of(folder: Path, rank: int) -> Path:
    """Return the file with the stacks that a rank writes."""
    return folder / f"rank{rank}.stack"


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Supervisor:
    """Watch ranks until all have ended.

    Args:
        processes: the ranks' processes.
        inbox: where their messages arrive.
        size: how many ranks there are.
        timeout: seconds that the test may take once all have found each other.
        folder: where they write their output and their stacks.
    """

    def __init__(
        self, processes: RankProcesses, inbox: Inbox, size: int, timeout: float, folder: Path
    ) -> None:
        self._processes = processes
        self._inbox = inbox
        self._timeout = timeout
        self._records = [RankRecord(rank, folder) for rank in range(size)]
        self._began: float | None = None  # when the last rank joined
        self._trouble: tuple[float, str] | None = None  # since when one has not passed, and which
        self._all_ended: float | None = None
        self._start = time.monotonic()

    def watch(self) -> list[RankRecord]:
        """Return what each rank said, once all have ended."""
        while self._running():
            self._take(self._inbox.receive(_POLL_SECONDS))
            self._look_at_processes()
            reason = self._reason_to_stop()
            if reason is not None:
                self._stop(self._running(), reason)
        return self._records

    def _running(self) -> list[RankRecord]:
        return [record for record in self._records if not record.ended_at]

    def _take(self, message: Message | None) -> None:
        while message is not None:
            record = self._records[message.rank]
            if message.kind == "hung up":
                record.hung_up = True
            else:
                record.messages.append(message)
                record.said.add(message.kind)
            if message.kind == "joined":
                record.errors_before = len(record.errors)
            if message.kind in ("trouble", "refused") and self._trouble is None:
                words = f"rank {record.rank} {str(message.content).partition(chr(10))[0]}"
                self._trouble = (time.monotonic(), words)
            message = self._inbox.receive(0)
        now = time.monotonic()
        if self._began is None and all("joined" in record.said for record in self._records):
            self._began = now
        if self._all_ended is None and all("ended" in record.said for record in self._records):
            self._all_ended = now

    def _look_at_processes(self) -> None:
        for record in self._running():
            code = self._processes.exit_code(record.rank)
            if code is None:
                continue
            if record.exit_code is None:
                record.exit_code = code
                self._processes.kill(record.rank)  # what it has started and left behind
            if record.hung_up or "started" not in record.said:
                record.ended_at = time.time()
                if record.died and self._trouble is None:
                    self._trouble = (time.monotonic(), f"rank {record.rank} {record.died}")

    def _reason_to_stop(self) -> str | None:
        """Return why the ranks that still run must end now; None if they may go on."""
        now = time.monotonic()
        if self._all_ended is not None:
            return "" if now > self._all_ended + _EXIT_SECONDS else None
        if self._trouble is not None and now > self._trouble[0] + GRACE_SECONDS:
            return f"was stopped {GRACE_SECONDS:.0f} s after {self._trouble[1]}"
        if self._began is not None:
            return f"was not done after {self._timeout:g} s" if self._is_late(now) else None
        if now > self._start + START_SECONDS:
            return f"had not started after {START_SECONDS:.0f} s"
        return None

    def _is_late(self, now: float) -> bool:
        return self._began is not None and now > self._began + self._timeout

    def _stop(self, records: list[RankRecord], reason: str) -> None:
        """End ranks, once each has told where it is."""
        unfinished = [record for record in records if "ended" not in record.said]
        collect_stacks(self._processes, unfinished)
        for record in records:
            if record in unfinished and record.exit_code is None:
                record.stopped = reason
            self._processes.kill(record.rank)
            record.exit_code = self._processes.exit_code(record.rank)
            record.ended_at = time.time()
        self._take(self._inbox.receive(0))  # what arrived meanwhile


def collect_stacks(processes: RankProcesses, records: Iterable[RankRecord]) -> None:
    """Ask ranks that have started where they are, and wait a while for their stacks."""
    asked = [
        record
        for record in records
        if "started" in record.said and processes.request_stack(record.rank)
    ]
    limit = time.monotonic() + _STACK_SECONDS
    sizes: dict[int, int] = {}
    while asked and time.monotonic() < limit:
        time.sleep(_POLL_SECONDS)
        for record in [*asked]:
            written = _read(stack_of(record.folder, record.rank))
            if written and len(written) == sizes.get(record.rank):
                record.stack = main_stack(written)
                asked.remove(record)
            sizes[record.rank] = len(written)
