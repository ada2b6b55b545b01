"""Tell the user's stack frames from those of libraries and of this package."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType

from pytest_bninvariants.verdict import Place

PACKAGE = f"{Path(__file__).parent}{os.sep}"
"""The folder of this package, with the separator that ends it."""

_NAME = __name__.partition(".")[0]
_CONFORMANCE = f"{PACKAGE}conformance{os.sep}"
_LIBRARIES = tuple(
    f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_PYTHON = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))
_NO_TOOLS = "torch.nn.modules."  # calls of a module are not worth naming
_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


@lru_cache(maxsize=4096)
def is_user_file(filename: str) -> bool:
    """Tell whether a file is the user's: not generated, and not of a library or this package."""
    if filename.startswith(("<", PACKAGE)):
        return False
    return not (filename.startswith(_LIBRARIES) or _is_installed(filename))


def _is_installed(filename: str) -> bool:
    """Tell whether a file lies in a folder for installed packages."""
    return not _PACKAGE_FOLDERS.isdisjoint(Path(filename).parts)


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def user_line() -> tuple[str, int]:
    """Return the file and line of the innermost frame in the user's code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return ("?", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def place_of(frame: FrameType | None, call: str) -> Place | None:
    """Find the user's line that led to a call.

    Args:
        frame: the frame that made the call.
        call: what was called.

    Returns:
        The innermost line of the user's own code, with the library function in between, if any.
        If the stack has no code of the user's, the innermost line of a library other than torch
        and Python's own; None if there is none, as in the threads of torch's backward.
    """
    tool, innermost = None, frame
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        module = str(frame.f_globals.get("__name__", "?"))
        is_tool = not (frame.f_code.co_filename.startswith(PACKAGE) or module.startswith(_NO_TOOLS))
        if tool is None and is_tool:
            tool = f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    frame = frame or next(filter(_is_of_a_library, callers(innermost)), None)
    if frame is None:
        return None
    return Place(
        file=frame.f_code.co_filename,
        line=frame.f_lineno,
        function=frame.f_code.co_name,
        call=call,
        tool=tool,
    )


def _is_of_a_library(frame: FrameType) -> bool:
    filename, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__", "?"))
    is_torch = module.partition(".")[0] == "torch"
    is_pythons = filename.startswith(_PYTHON) and not _is_installed(filename)
    return not (is_torch or is_pythons or filename.startswith(PACKAGE))


def relative_path(file: str) -> str:
    """Return a path relative to the current folder, if it is inside that."""
    return _relative_to(file, os.getcwd())


@lru_cache(maxsize=1024)
def _relative_to(file: str, folder: str) -> str:
    path = Path(file)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else file


def is_our_frame(traceback: TracebackType) -> bool:
    """Tell whether a traceback's frame is of this package, but not of its conformance tests."""
    filename = traceback.tb_frame.f_code.co_filename
    if filename == "<string>":  # code that dataclasses generate
        return str(traceback.tb_frame.f_globals.get("__name__")).startswith(f"{_NAME}.")
    return filename.startswith(PACKAGE) and not filename.startswith(_CONFORMANCE)


def drop_our_frames(error: BaseException) -> None:
    """Remove this package's frames from the tracebacks of an exception and of its causes."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = _without_our_frames(current.__traceback__)
        pending += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions


def _without_our_frames(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and is_our_frame(traceback):
        traceback = traceback.tb_next
    kept = traceback
    while kept is not None:
        while kept.tb_next is not None and is_our_frame(kept.tb_next):
            kept.tb_next = kept.tb_next.tb_next
        kept = kept.tb_next
    return traceback
