"""Read the stacks that faulthandler writes, and tell where in the user's code a rank is."""

from __future__ import annotations

import faulthandler
import linecache
import re
import signal
from pathlib import Path
from typing import NamedTuple

from pytest_bninvariants.frames import is_user_file, relative_path

STACK_SIGNAL = getattr(signal, "SIGUSR2", None)
"""The signal at which a rank writes its stack; None where there is none, as on Windows."""

_FRAME = re.compile(r'  File "(.+)", line (\d+|\?\?\?) in (.+)')
_WRITING = "Current thread "
_WRAPPERS = ("c10d_logger.py", "_contextlib.py", "contextlib.py", "eval_frame.py")
_INNERMOST = 3  # frames that are shown of a stack without the user's code
_MAIN = ("rank_main.py", "team_main.py")


class StackFrame(NamedTuple):
    """One frame of a written stack.

    Args:
        file: its file.
        line: its line; 0 if it is unknown.
        function: the name of its function.
    """

    file: str
    line: int
    function: str


def write_stacks_on_request(file: Path) -> None:
    """Have this process write its stacks to a file, whenever it gets `STACK_SIGNAL`."""
    stacks = file.open("w", encoding="utf-8")
    if STACK_SIGNAL is not None:
        faulthandler.register(STACK_SIGNAL, file=stacks, all_threads=True)


def main_stack(written: str) -> list[StackFrame]:
    """Return the stack of the thread that runs the test, the innermost frame first.

    Args:
        written: what faulthandler wrote of all threads; of several stacks, the last one counts.
            Where no thread is known to run the test, the one that wrote counts.
    """
    threads: list[list[StackFrame]] = []
    writing: list[list[StackFrame]] = []
    for line in written.splitlines():
        frame = _FRAME.fullmatch(line)
        if frame is not None and threads:
            number = int(frame[2]) if frame[2].isdecimal() else 0
            threads[-1].append(StackFrame(frame[1], number, frame[3]))
        elif "(most recent call first)" in line:
            threads.append([])
            if line.startswith(_WRITING):
                writing.append(threads[-1])
    of_test = [frames for frames in threads if any(f.file.endswith(_MAIN) for f in frames)]
    return next(reversed(of_test or writing or threads), [])


def whereabouts(frames: list[StackFrame]) -> str:
    """Return where a rank is, as in `in all_reduce at test_x.py:12`; empty if nothing tells."""
    for index, frame in enumerate(frames):
        if is_user_file(frame.file):
            inner = [each for each in frames[:index] if not each.file.endswith(_WRAPPERS)]
            function = inner[-1].function if inner else ""
            return (f"in {function} " if function else "") + f"at {_place(frame)}"
    return f"in {frames[0].function} at {_place(frames[0])}" if frames else ""


def has_function(frames: list[StackFrame], name: str) -> bool:
    """Tell whether a stack has a function of a name."""
    return any(frame.function == name for frame in frames)


def stack_lines(frames: list[StackFrame]) -> list[str]:
    """Return a stack as Python writes it, without pytest's frames, the innermost call last."""
    users = [index for index, frame in enumerate(frames) if is_user_file(frame.file)]
    lines = []
    for frame in reversed(frames[: users[-1] + 1 if users else _INNERMOST]):
        lines.append(f"  {_place(frame)} in {frame.function}")
        source = linecache.getline(frame.file, frame.line).strip()
        if source:
            lines.append(f"    {source}")
    return lines


def _place(frame: StackFrame) -> str:
    return f"{relative_path(frame.file)}:{frame.line}"
