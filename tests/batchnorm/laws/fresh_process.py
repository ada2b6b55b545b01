"""Run reports' snippets, each in a process of its own that begins with torch and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]  # snippets import the layers of `tests`
# torch is imported once; a child is forked for each snippet, before torch starts any thread
_DRIVER = """
import json, os, sys
import torch

for line in sys.stdin:
    reading, writing = os.pipe()
    if not os.fork():
        error = ""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            exec(compile(json.loads(line), "<snippet>", "exec"), {"__name__": "__main__"})
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"[:2000]
        os.write(writing, json.dumps(error).encode())
        os._exit(0)
    os.close(writing)
    os.wait()
    with open(reading) as answer:
        print(answer.read(), flush=True)
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
        assert self._driver.stdin
        assert self._driver.stdout
        self._driver.stdin.write(json.dumps(snippet) + "\n")
        self._driver.stdin.flush()
        error: str = json.loads(self._driver.stdout.readline())
        return error

    def close(self) -> None:
        """End the process."""
        self._driver.kill()
        self._driver.communicate()
