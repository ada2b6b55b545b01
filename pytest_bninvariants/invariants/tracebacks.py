"""Keep this package's frames out of tracebacks: a user's failure is about a user's code."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_NAME = __name__.partition(".")[0]
_CONFORMANCE = f"{_PACKAGE}conformance{os.sep}"


def is_ours(traceback: TracebackType) -> bool:
    """Tell whether a traceback's frame runs this package's machinery."""
    filename = traceback.tb_frame.f_code.co_filename
    if filename == "<string>":  # what dataclasses generate
        return str(traceback.tb_frame.f_globals.get("__name__")).startswith(f"{_NAME}.")
    return filename.startswith(_PACKAGE) and not filename.startswith(_CONFORMANCE)


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
    while traceback is not None and is_ours(traceback):
        traceback = traceback.tb_next
    kept = traceback
    while kept is not None:
        while kept.tb_next is not None and is_ours(kept.tb_next):
            kept.tb_next = kept.tb_next.tb_next
        kept = kept.tb_next
    return traceback
