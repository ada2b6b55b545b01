"""Run a module of checks in several processes, started by torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_SECONDS = 150


def run_checks(module: str, ranks: int) -> list[dict[str, dict[str, Any]]]:
    """Run a module of `tests.ranks.checks`, and return what each rank was told.

    Args:
        module: its name, such as `tests.invariants.in_sync.syncing_ranks`.
        ranks: how many processes to start.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "-m", module]
    with tempfile.TemporaryDirectory() as told_in:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOLD_IN": told_in}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # its ranks end with it
        )
        try:
            output = process.communicate(timeout=_SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"the ranks did not end: {process.communicate()[0][-3000:]}")
        files = [Path(told_in) / f"{rank}.json" for rank in range(ranks)]
        assert all(file.exists() for file in files), output[-3000:]
        return [json.loads(file.read_text()) for file in files]
