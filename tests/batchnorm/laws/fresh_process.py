"""Run reports' snippets, each in a process of its own that begins with torch and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.ranks.runs import environments_of

ROOT = Path(__file__).parents[3]  # snippets import the layers of `tests`
# torch is imported once, and what torch imports late; a child is forked for each snippet, before
# torch starts any thread
_DRIVER = """
import json, os, sys, time
import torch, torch._dynamo, torch._functorch.aot_autograd

def run(snippet, environment, writing):
    error = ""
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        exec(compile(snippet, "<snippet>", "exec"), {"__name__": "__main__"})
        time.sleep(0.3 if environment else 0)  # other ranks may still read what this one sent
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"[:2000]
    os.write(writing, json.dumps(error).encode())
    os._exit(0)

for line in sys.stdin:
    snippet, environments = json.loads(line)
    readings = []
    for environment in environments:
        reading, writing = os.pipe()
        readings.append(reading)
        if not os.fork():
            run(snippet, environment, writing)
        os.close(writing)
    for each in environments:
        os.wait()
    print(json.dumps([json.loads(open(each).read() or '"died"') for each in readings]), flush=True)
"""


class SnippetRunner:
    """Run snippets, one at a time."""

    def __init__(self) -> None:
        self._driver = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _DRIVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, snippet: str) -> str:
        """Return the error that a snippet ends with, as a traceback has it; empty if none."""
        return self._run(snippet, [{}])[0]

    def run_on_ranks(self, snippet: str, size: int) -> list[str]:
        """Return the errors that a snippet ends with on each rank, in torchrun's environment."""
        return self._run(snippet, environments_of(size, {}))

    def _run(self, snippet: str, environments: list[dict[str, str]]) -> list[str]:
        """Return the errors of processes, one for each environment."""
        assert self._driver.stdin
        assert self._driver.stdout
        self._driver.stdin.write(json.dumps([snippet, environments]) + "\n")
        self._driver.stdin.flush()
        errors: list[str] = json.loads(self._driver.stdout.readline())
        return errors

    def close(self) -> None:
        """End the process."""
        self._driver.kill()
        self._driver.communicate()
