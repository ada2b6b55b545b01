"""Run Python commands in forks of a process that has imported the slow libraries already.

Of a new process' time, four fifths go into importing torch and hypothesis. The package itself is
not imported here, so each fork loads the plugin as a new process would.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

SLOW_LIBRARIES = (
    "hypothesis.core",
    "hypothesis.strategies",
    "numpy",
    "torch._dynamo.convert_frame",
    "torch.distributed",
    "torch.utils.checkpoint",
    "torchvision",
)


class WarmPython:
    """A process that forks for each command; where the system cannot fork, a new process each."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        if sys.platform == "linux":
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run `python *arguments` in a folder: `-m MODULE ...` or `SCRIPT ...`."""
        if self._server is None:
            return subprocess.run(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"arguments": arguments, "folder": str(folder), "environment": dict(environment)}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = json.loads(self._server.stdout.readline())
        return subprocess.CompletedProcess(list(arguments), **answer)

    def close(self) -> None:
        """End the process."""
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait(timeout=120)


def serve() -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    for name in SLOW_LIBRARIES:
        __import__(name)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
    child = os.fork()
    if not child:
        _become(request, outputs)
    _, status = os.waitpid(child, 0)
    texts = []
    for output in outputs:
        with open(output, encoding="utf-8", errors="replace") as file:
            file.seek(0)
            texts.append(file.read())
    code = os.waitstatus_to_exitcode(status)
    return {"returncode": code, "stdout": texts[0], "stderr": texts[1]}


def _become(request: dict[str, Any], outputs: Sequence[int]) -> NoReturn:
    """Become the command, and never return."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[0] = request["folder"]
        code = _run(*request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(first: str, *rest: str) -> int:
    try:
        if first == "-m":
            sys.argv = list(rest)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    serve()
