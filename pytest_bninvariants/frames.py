"""Whose stack frame is this: the user's, a library's or ours; and paths as people read them."""

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
_NO_TOOLS = "torch.nn.modules."
_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


@lru_cache(maxsize=4096)
def is_user_file(filename: str) -> bool:
    """Tell whether a file is the user's: not a library's, not generated, not of this package."""
    if filename.startswith(("<", PACKAGE)):
        return False
    return not (
        filename.startswith(_LIBRARIES) or _PACKAGE_FOLDERS.intersection(Path(filename).parts)
    )


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those that it was called from, outwards."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def user_line() -> tuple[str, int]:
    """Return file and line of the user's code that is running."""
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
        The innermost line of the user's own code, with the library function in between, if any;
        if no code of the user's is on the stack, the library's line.
    """
    tool = None
    nearest = frame
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        module = str(frame.f_globals.get("__name__", "?"))
        is_tool = not (frame.f_code.co_filename.startswith(PACKAGE) or module.startswith(_NO_TOOLS))
        if tool is None and is_tool:
            tool = f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    frame = frame or nearest
    if frame is None:
        return None
    return Place(
        file=frame.f_code.co_filename,
        line=frame.f_lineno,
        function=frame.f_code.co_name,
        call=call,
        tool=tool,
    )


def relative_path(file: str) -> str:
    """Return a path as seen from the current folder, if it is below that."""
    return _below(file, os.getcwd())


@lru_cache(maxsize=1024)
def _below(file: str, here: str) -> str:
    path = Path(file)
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def is_our_frame(traceback: TracebackType) -> bool:
    """Tell whether a traceback's frame runs this package's machinery."""
    filename = traceback.tb_frame.f_code.co_filename
    if filename == "<string>":  # what dataclasses generate
        return str(traceback.tb_frame.f_globals.get("__name__")).startswith(f"{_NAME}.")
    return filename.startswith(PACKAGE) and not filename.startswith(_CONFORMANCE)


def drop_our_frames(error: BaseException) -> None:
    """Unlink this package's frames from an exception's traceback, and from its causes'."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = _unlinked(current.__traceback__)
        pending += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions


def _unlinked(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and is_our_frame(traceback):
        traceback = traceback.tb_next
    kept = traceback
    while kept is not None:
        while kept.tb_next is not None and is_our_frame(kept.tb_next):
            kept.tb_next = kept.tb_next.tb_next
        kept = kept.tb_next
    return traceback
