"""The process of one rank of a team: it runs the lines of each job, and sends what they give."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Mapping
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pytest_bninvariants.ranks.environment import World
from pytest_bninvariants.ranks.group import Membership, use_own_device
from pytest_bninvariants.ranks.messages import Line
from pytest_bninvariants.ranks.stacks import write_stacks_on_request
from pytest_bninvariants.ranks.supervision import stack_of

_IDLE = timedelta(days=7)  # the process ends when that which started it does
_COLLECTIVE_SECONDS = 1800.0  # torch's own default; the parent gives up before


def line_name(index: int) -> str:
    """Return the name that stands in a stack for the file of a job's line."""
    return f"<line {index}>"


def main(order: Mapping[str, Any]) -> None:
    """Join the other ranks, and do one job after another.

    Args:
        order: what the parent wants: `port`, `token`, `folder`, `device`, `backend`.
    """
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    line = Line(world.rank, order["port"], order["token"])
    write_stacks_on_request(stack_of(Path(order["folder"]), world.rank))
    line.send("started")
    use_own_device(order["device"])
    membership = Membership("team", world, _COLLECTIVE_SECONDS)
    membership.missing_ranks()
    membership.join(order["backend"])
    line.send("joined")
    jobs = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    names: dict[str, Any] = {"torch": torch, "distributed": distributed, "rank": world.rank}
    for number in count():
        jobs.wait([f"job/{number}"], _IDLE)
        job = json.loads(jobs.get(f"job/{number}"))
        line.send("answer", run_job(job, names))


def run_job(job: Mapping[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Run a job's lines, and return the values of its expressions, or what a line raised.

    Args:
        job: `lines`; `results`, expressions; and `stays`, whether later jobs have its names, too.
        names: what the lines may use.
    """
    own = names if job["stays"] else dict(names)
    values = []
    for index, line in enumerate([*job["lines"], *job["results"]]):
        is_result = index >= len(job["lines"])
        try:
            value = eval(compile(line, line_name(index), "eval" if is_result else "exec"), own)
        except Exception as error:  # whatever the user's code raises is the answer
            raised = f"{type(error).__name__}: {error}"
            return {"raised": raised, "index": index, "number": _number(error, index)}
        if is_result:
            values.append(_plain(value))
    return {"values": values}


def _number(error: Exception, index: int) -> int:
    """Return the number of the line of a block that raised, from 1 on."""
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [frame.lineno for frame in frames if frame.filename == line_name(index)]
    return next((number for number in numbers if number), 1)


def _plain(value: Any) -> Any:
    """Return a value that another process can read: of a tensor, a copy in the host's memory."""
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
