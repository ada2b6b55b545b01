"""Find the line of the user's own code that made a call."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType

from torch import nn

from pytest_bninvariants.invariants.verdict import Place

_OURS = f"{Path(__file__).parents[1]}{os.sep}"
_LIBRARIES = tuple(
    f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_NO_TOOLS = "torch.nn.modules."
_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})


@lru_cache(maxsize=4096)
def is_users(filename: str) -> bool:
    """Tell whether a file is the user's own: no library, no generated code, not this package."""
    if filename.startswith(("<", _OURS)):
        return False
    return not (
        filename.startswith(_LIBRARIES) or _PACKAGE_FOLDERS.intersection(Path(filename).parts)
    )


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and those that it was called from, outwards."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def users_line() -> tuple[str, int]:
    """Return file and line of the user's code that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return ("?", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def place_of_mode_call(frame: FrameType | None, module: nn.Module, training: bool) -> Place | None:
    """Find who set a module's mode.

    Args:
        frame: the frame that assigns `module.training`.
        module: the module.
        training: the value that is assigned.

    Returns:
        The first line of the user's own code outside of `train` and `eval` methods, with the
        outermost of those as the call, and the library function in between, if one acted.
    """
    call = f"{type(module).__name__}.training = {training}"
    while frame is not None and frame.f_code.co_name == "__setattr__":
        frame = frame.f_back
    while frame is not None and frame.f_code.co_name in ("train", "eval"):
        known = frame.f_locals
        owner = known["self"] if "self" in known else _receiver(frame)
        if not isinstance(owner, nn.Module):
            break
        mode = "" if frame.f_code.co_name == "eval" else training
        call = f"{type(owner).__name__}.{frame.f_code.co_name}({mode})"
        frame = frame.f_back
    return place_of(frame, call)


def _receiver(frame: FrameType) -> object:
    """Return whose method runs, whatever it calls itself; a function may be given a module, too."""
    name, first = frame.f_code.co_name, frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))
    methods = (vars(base).get(name) for base in type(first).__mro__)
    is_method = any(getattr(method, "__code__", None) is frame.f_code for method in methods)
    return first if is_method else None


def place_of_outermost_call(frame: FrameType | None) -> Place | None:
    """Find the user's line that called the outermost of the modules that run at the moment."""
    outermost, call = frame, "a forward"
    while frame is not None:
        module = frame.f_locals.get("self") if frame.f_code.co_name == "_call_impl" else None
        if isinstance(module, nn.Module) and frame.f_code.co_filename.startswith(_OURS):
            outermost, call = frame.f_back, f"{type(module).__name__}.forward()"
        frame = frame.f_back
    return place_of(outermost, call)


def place_of(frame: FrameType | None, call: str) -> Place | None:
    """Find the user's line that led to a call.

    Args:
        frame: the frame that made the call.
        call: what was called.

    Returns:
        The first line of the user's own code, with the library function in between, if one acted;
        where no code of the user's is on the stack, the library's own line.
    """
    tool = None
    nearest = frame
    while frame is not None and not is_users(frame.f_code.co_filename):
        module = str(frame.f_globals.get("__name__", "?"))
        is_tool = not (frame.f_code.co_filename.startswith(_OURS) or module.startswith(_NO_TOOLS))
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
