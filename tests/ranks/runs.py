"""Run a module of checks in several processes, as torchrun would."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from tests.ranks.warm_python import WarmPython

ROOT = Path(__file__).parents[2]
_SECONDS = 150


def run_checks(python: WarmPython, module: str, ranks: int) -> list[dict[str, dict[str, Any]]]:
    """Run a module of `tests.ranks.checks`, and return what each rank was told.

    Args:
        python: what starts the processes.
        module: its name, such as `tests.invariants.in_sync.across_ranks.syncing_ranks`.
        ranks: how many processes to start.
    """
    with tempfile.TemporaryDirectory() as told_in:
        environments = environments_of(ranks, {**os.environ, "TOLD_IN": told_in})
        done = python.run_together(["-m", module], ROOT, environments, seconds=_SECONDS)
        files = [Path(told_in) / f"{rank}.json" for rank in range(ranks)]
        assert all(file.exists() for file in files), [each.stderr[-3000:] for each in done]
        return [json.loads(file.read_text()) for file in files]


def environments_of(ranks: int, shared: dict[str, str]) -> list[dict[str, str]]:
    """Return the environment of each rank: what torchrun sets, and what all of them share."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def run_script(python: WarmPython, script: Path, *arguments: str) -> list[Any]:
    """Run a script in two processes that find each other, and return what each prints."""
    environments = environments_of(2, {**os.environ})
    done = python.run_together([str(script), *arguments], ROOT, environments, seconds=_SECONDS)
    return [json.loads(each.stdout) for each in done]
