"""A team of ranks: processes that stay, and run one job after another."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.ranks.bootstrap import write_order
from pytest_bninvariants.ranks.group import default_backend
from pytest_bninvariants.ranks.messages import Inbox, Message
from pytest_bninvariants.ranks.processes import RankProcesses
from pytest_bninvariants.ranks.stacks import whereabouts
from pytest_bninvariants.ranks.supervision import (
    GRACE_SECONDS,
    START_SECONDS,
    RankRecord,
    collect_stacks,
)

JOB_SECONDS = 30.0
"""How long a job may take that makes a layer and calls it a few times."""

_POLL_SECONDS = 0.05
_SHOWN_LINES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RankJob:
    """Lines of code that each rank of a team runs; `rank` in them is its number.

    Args:
        setup: lines whose names later jobs have, too, such as imports; each runs once.
        lines: further lines.
        results: expressions whose values each rank answers.
    """

    setup: tuple[str, ...]
    lines: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAnswer:
    """What one rank made of a job.

    Args:
        rank: which one.
        values: the values of the job's expressions; empty if it did not come so far.
        trouble: why it did not, as in `raised ValueError: ...`; empty if it did.
        line: the line in which that was; empty if it is not known.
        first: whether it was in trouble before others were.
        died: whether its process ended.
    """

    rank: int
    values: tuple[Any, ...] = ()
    trouble: str = ""
    line: str = ""
    first: bool = False
    died: bool = False


def first_trouble(answers: Iterable[RankAnswer]) -> RankAnswer | None:
    """Return the answer that tells from what the others' trouble follows; None if there is none.

    What a rank that died leaves to the others may be told before its death.
    """
    troubled = [answer for answer in answers if answer.trouble]
    return min(troubled, key=lambda each: (not each.died, not each.first), default=None)


def backend_for(device: str, size: int) -> str:
    """Return the backend for ranks on a kind of device: gloo where they must share one."""
    kind = torch.device(device)
    shared = kind.type != "cpu" and (
        kind.index is not None or torch.get_device_module(kind).device_count() < size
    )
    return "gloo" if shared else default_backend(device)


class RankTeam:
    """Ranks on this machine that run jobs; they start with the first, and stop with a trouble.

    Args:
        size: how many ranks there are.
        device: the kind of device that they compute on.
        seconds: how long a job may take.
    """

    def __init__(self, size: int, device: str = "cpu", seconds: float = JOB_SECONDS) -> None:
        self.size, self.device = size, device
        self._seconds = seconds
        self._open = ExitStack()
        self._processes: RankProcesses | None = None
        self._inbox: Inbox | None = None
        self._records: list[RankRecord] = []
        self._jobs = 0
        self._set_up: set[str] = set()

    def run(self, job: RankJob) -> list[RankAnswer]:
        """Return what each rank makes of a job, the first rank's answer first.

        Args:
            job: the job.

        Raises:
            GateError: if the ranks do not start.
        """
        self._started()
        setup = tuple(line for line in job.setup if line not in self._set_up)
        if setup:
            answers = self._ask(setup, (), START_SECONDS, stays=True)
            if first_trouble(answers) is not None:
                return answers
            self._set_up |= set(setup)
        return self._ask(job.lines, job.results, self._seconds)

    def _ask(
        self, lines: Sequence[str], results: Sequence[str], seconds: float, *, stays: bool = False
    ) -> list[RankAnswer]:
        """Have lines run on each rank, and return the answers; the ranks end if one fails."""
        processes, inbox = self._started()
        order = {"lines": lines, "results": results, "stays": stays}
        processes.post(f"job/{self._jobs}", json.dumps(order))
        self._jobs += 1
        answers = _Answers([*lines, *results], self._records, processes).collect(inbox, seconds)
        if first_trouble(answers) is not None:
            self.close()
        return answers

    def close(self) -> None:
        """End the ranks; a further job starts others."""
        self._open.close()
        self._processes, self._jobs, self._set_up = None, 0, set()

    def _started(self) -> tuple[RankProcesses, Inbox]:
        if self._processes is None or self._inbox is None:
            folder = self._open.enter_context(
                tempfile.TemporaryDirectory(prefix="ranks-", ignore_cleanup_errors=True)
            )
            self._inbox = self._open.enter_context(Inbox())
            order = self._order(folder, *self._inbox.address)
            arguments = write_order(Path(folder), order)
            self._records = [RankRecord(rank, Path(folder)) for rank in range(self.size)]
            self._processes = RankProcesses(self.size, arguments, folder)
            self._open.callback(self._processes.close)
            self._wait_until_joined(self._processes, self._inbox)
        return self._processes, self._inbox

    def _order(self, folder: str, port: int, token: str) -> dict[str, Any]:
        return {
            "module": "pytest_bninvariants.ranks.team_main",
            "port": port,
            "token": token,
            "folder": folder,
            "shows_output": False,
            "sys_path": sys.path,
            "device": self.device,
            "backend": backend_for(self.device, self.size),
        }

    def _wait_until_joined(self, processes: RankProcesses, inbox: Inbox) -> None:
        limit = time.monotonic() + START_SECONDS
        while not all("joined" in record.said for record in self._records):
            message = inbox.receive(_POLL_SECONDS)
            if message is not None:
                self._records[message.rank].said.add(message.kind)
            dead = [r for r in self._records if processes.exit_code(r.rank) is not None]
            if dead or time.monotonic() > limit:
                text = "\n".join(_last_lines(each.errors) for each in dead)
                self.close()
                raise GateError(f"{self.size} ranks did not start on {self.device}\n{text}")


class RankTeams:
    """The teams of a run, one for each number of ranks and each device; a context manager.

    Args:
        seconds: how long a job may take.
    """

    def __init__(self, seconds: float = JOB_SECONDS) -> None:
        self.notes: dict[object, str] = {}
        """What the users of the teams want to remember until the end."""
        self._seconds = seconds
        self._teams: dict[tuple[int, str], RankTeam] = {}

    def team(self, size: int, device: str) -> RankTeam:
        """Return the team of so many ranks on a device; it starts with its first job."""
        team = RankTeam(size, device, self._seconds)
        return self._teams.setdefault((size, device), team)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for team in self._teams.values():
            team.close()


class _Answers:
    """Collect what the ranks make of a job.

    Args:
        lines: the job's lines, and its expressions.
        records: the ranks.
        processes: their processes.
    """

    def __init__(
        self, lines: Sequence[str], records: list[RankRecord], processes: RankProcesses
    ) -> None:
        self._lines, self._records, self._processes = lines, records, processes
        self._answers: dict[int, RankAnswer] = {}
        self._trouble: tuple[float, str] | None = None  # since when, and what it was

    def collect(self, inbox: Inbox, seconds: float) -> list[RankAnswer]:
        """Return the answers, once all ranks have answered or have been given up."""
        limit = time.monotonic() + seconds
        while self._missing():
            self._take(inbox.receive(_POLL_SECONDS))
            self._look_at_processes()
            now = time.monotonic()
            if self._trouble is not None and now > self._trouble[0] + GRACE_SECONDS:
                self._give_up(f"was stopped {GRACE_SECONDS:.0f} s after {self._trouble[1]}")
            elif now > limit:
                self._give_up(f"was not done after {seconds:g} s")
        return [self._answers[record.rank] for record in self._records]

    def _missing(self) -> list[RankRecord]:
        return [record for record in self._records if record.rank not in self._answers]

    def _take(self, message: Message | None) -> None:
        if message is None:
            return
        if message.kind == "hung up":
            self._records[message.rank].hung_up = True
        elif message.kind == "refused":
            self._add(message.rank, str(message.content))
        elif "raised" in message.content:
            line = self._line(message.content["index"], message.content["number"])
            self._add(message.rank, f"raised {message.content['raised']}", line)
        else:
            values = tuple(message.content["values"])
            self._answers[message.rank] = RankAnswer(rank=message.rank, values=values)

    def _look_at_processes(self) -> None:
        for record in self._missing():
            record.exit_code = self._processes.exit_code(record.rank)
            if record.hung_up and record.exit_code is not None:
                self._add(record.rank, record.died, died=True)

    def _add(self, rank: int, trouble: str, line: str = "", *, died: bool = False) -> None:
        first = self._trouble is None
        self._answers[rank] = RankAnswer(
            rank=rank, trouble=trouble, line=line, first=first, died=died
        )
        if self._trouble is None:
            self._trouble = (time.monotonic(), f"rank {rank} {trouble.partition(chr(10))[0]}")

    def _give_up(self, reason: str) -> None:
        missing = self._missing()
        collect_stacks(self._processes, missing)
        for record in missing:
            where = whereabouts(record.stack)
            waited = f"; it waited {where}" if where else ""
            self._add(record.rank, reason + waited, self._line_of(record))

    def _line_of(self, record: RankRecord) -> str:
        """Return the line in which a rank is, by its stack; empty if that does not tell."""
        for frame in record.stack:
            match = re.fullmatch(r"<line (\d+)>", frame.file)
            if match is not None:
                return self._line(int(match[1]), frame.line)
        return ""

    def _line(self, index: int, number: int) -> str:
        """Return the line of a block that has a number, from 1 on."""
        return self._lines[index].splitlines()[max(number, 1) - 1].strip()


def _last_lines(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_SHOWN_LINES:])
