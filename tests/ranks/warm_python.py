"""Run Python commands in forks of a process that has imported the slow libraries already.

Of a new process' time, four fifths go into importing torch and hypothesis. The package itself is
not imported here, so each fork loads the plugin as a new process would.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
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
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        seconds: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python *arguments` in a folder: `-m MODULE ...`, `-c CODE ...` or `SCRIPT ...`."""
        return self.run_together(arguments, folder, [environment], seconds=seconds)[0]

    def run_together(
        self,
        arguments: Sequence[str],
        folder: Path,
        environments: Sequence[Mapping[str, str]],
        *,
        seconds: float = 300,
    ) -> list[subprocess.CompletedProcess[str]]:
        """Run a command in several processes at once, one for each environment.

        Raises:
            TimeoutError: if they do not all end in time; they are killed.
        """
        if self._server is None:
            return _run_anew(arguments, folder, environments, seconds)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {
            "arguments": arguments,
            "folder": str(folder),
            "environments": [dict(each) for each in environments],
            "seconds": seconds,
        }
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = json.loads(self._server.stdout.readline())
        done = [subprocess.CompletedProcess([*arguments], **each) for each in answer["ended"]]
        if answer["late"]:
            raise TimeoutError(f"{arguments} ran for over {seconds} s; it said {done}")
        return done

    def close(self) -> None:
        """End the process."""
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait(timeout=120)


def _run_anew(
    arguments: Sequence[str],
    folder: Path,
    environments: Sequence[Mapping[str, str]],
    seconds: float,
) -> list[subprocess.CompletedProcess[str]]:
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=each,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for each in environments
    ]
    ended = []
    for process in started:
        try:
            said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as late:
            for each in started:
                each.kill()
            raise TimeoutError(f"{arguments} ran for over {seconds} s") from late
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, *said))
    return ended


def serve() -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    for name in SLOW_LIBRARIES:
        __import__(name)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    outputs, children = [], []
    for environment in request["environments"]:
        outputs.append([os.memfd_create(name) for name in ("stdout", "stderr")])
        children.append(os.fork())
        if not children[-1]:
            _become(request, environment, outputs[-1])
    codes, late = _wait_for(children, request["seconds"])
    ended = []
    for code, (stdout, stderr) in zip(codes, outputs, strict=True):
        ended.append({"returncode": code, "stdout": _text_of(stdout), "stderr": _text_of(stderr)})
    return {"ended": ended, "late": late}


def _wait_for(children: Sequence[int], seconds: float) -> tuple[list[int], bool]:
    """Return the exit codes of processes, and whether they had to be killed."""
    end, late = time.monotonic() + seconds, False
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > end:
                    os.killpg(child, signal.SIGKILL)
                    late = True
        time.sleep(0.005)
    return [codes[child] for child in children], late


def _text_of(output: int) -> str:
    with open(output, encoding="utf-8", errors="replace") as file:
        file.seek(0)
        return file.read()


def _become(
    request: dict[str, Any], environment: dict[str, str], outputs: Sequence[int]
) -> NoReturn:
    """Become the command, and never return."""
    code = 1
    try:
        os.setsid()  # what it starts ends with it
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(environment)
        sys.path[0] = request["folder"]
        sys.path[1:1] = environment.get("PYTHONPATH", "").split(os.pathsep)
        code = _run(*request["arguments"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(first: str, *rest: str) -> int:
    try:
        if first == "-m":
            sys.argv = list(rest)
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = [first, *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    serve()
