"""The environment variables by which torchrun tells a process which rank it is."""

from __future__ import annotations

import os
from typing import NamedTuple

ADDRESS = "127.0.0.1"


class World(NamedTuple):
    """The ranks that a launcher, such as torchrun, has started.

    Args:
        rank: this process's rank.
        size: how many there are.
    """

    rank: int
    size: int


def launched_world() -> World | None:
    """Return the ranks that this process is one of; None if no launcher started it."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return World(int(rank), int(size)) if rank.isdecimal() and size.isdecimal() else None


def rank_variables(rank: int, size: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun would set for one rank of a single machine.

    Args:
        rank: the rank.
        size: how many ranks there are.
        port: the port of the store that the process which starts the ranks serves.
    """
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "ROLE_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "ROLE_WORLD_SIZE": size,
        "GROUP_WORLD_SIZE": 1,
        "ROLE_NAME": "default",
        "MASTER_ADDR": ADDRESS,
        "MASTER_PORT": port,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0,
        "TORCHELASTIC_RUN_ID": f"bninvariants-{port}",
        "TORCHELASTIC_USE_AGENT_STORE": True,  # no rank serves a store, so none needs a free port
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", 1),
    }
    return {name: str(value) for name, value in variables.items()}
