"""Keep this package out of what dynamo compiles, and find out when dynamo compiles.

Importing this module imports dynamo. That takes a second, which should not fall into the first
guarded step, since hypothesis may be timing that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch

from pytest_bninvariants.torch_internals.patches import MakeWrapper, Patch
from pytest_bninvariants.torch_internals.private_api import find

_P = ParamSpec("_P")
_R = TypeVar("_R")

EVAL_FRAME = "torch._dynamo.eval_frame"
"""The module whose functions run compiled code."""

_eval_frame: Any = find(
    "torch._dynamo:eval_frame",
    used_for="finding out when compiled code runs",
    without="a guard assumes that compiled code may run in any step",
    default=None,
)
_skip_code: Callable[[Any], object] | None = find(
    "torch._dynamo.eval_frame:skip_code",
    used_for="having dynamo skip the frames of this package's wrappers",
    without="a guarded run may compile more graphs than a bare one",
    default=None,
)
_callback: Callable[[], object] | None = find(
    "torch._C._dynamo.eval_frame:get_eval_frame_callback",
    used_for="telling cheaply whether dynamo runs",
    without="dynamo is switched off and on around each function that is hidden from it",
    default=None,
    since="2.6",
)
_start_callbacks: list[Callable[..., None]] = find(
    "torch._dynamo.callback:callback_handler.start_callbacks",
    used_for="taking wrappers off while dynamo compiles",
    without="a guarded run may compile more graphs than a bare one",
    default=[],
)
_end_callbacks: list[Callable[..., None]] = find(
    "torch._dynamo.callback:callback_handler.end_callbacks",
    used_for="putting wrappers back after dynamo has compiled",
    without="wrappers are only put back when the next guard starts",
    default=[],
)
_set_eval_frame: Any = find(
    "torch._dynamo.eval_frame:set_eval_frame",
    used_for="finding out when compiled code runs",
    without="a guard assumes that compiled code may run in any step",
    default=None,
)
_maybe_set_eval_frame: Any = find(
    "torch._dynamo.eval_frame:_maybe_set_eval_frame",
    used_for="finding out when compiled code runs, in a torch that calls it for set_eval_frame",
    without="torch calls set_eval_frame instead",
    default=None,
    since="2.6",
)
_optimized_module: Any = find(
    "torch._dynamo.eval_frame:OptimizedModule",
    used_for="taking wrappers off while torch.compile looks up the method to call",
    without="a module that is compiled inside a guard keeps calling an idle wrapper",
    default=None,
)


def skipped_by_dynamo(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have dynamo skip a function's frame, even if it is compiling the caller.

    It may still compile what the function calls.
    """
    if _skip_code is not None:
        _skip_code(function.__code__)
    return function


@skipped_by_dynamo
def dynamo_runs() -> bool:
    """Tell whether dynamo looks at the frames that run; False if this torch does not tell."""
    return _callback is not None and _callback() is not None


def hidden_from_dynamo(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep dynamo from compiling a function and its callees, even if it is compiling the caller.

    While dynamo does not run, the function is called as it is: switching dynamo off and on takes
    longer than most of these functions.
    """
    hidden: Callable[_P, _R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    if _skip_code is None or _callback is None:
        return hidden

    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return (function if _callback() is None else hidden)(*args, **kwargs)

    return skipped_by_dynamo(call)


def add_compile_callbacks(start: Callable[..., None], end: Callable[..., None]) -> None:
    """Register functions that dynamo calls before and after it compiles."""
    _start_callbacks.append(start)
    _end_callbacks.append(end)


def remove_compile_callbacks(start: Callable[..., None], end: Callable[..., None]) -> None:
    """Remove these callbacks, unless the user's step has already removed all callbacks."""
    for callbacks, ours in ((_start_callbacks, start), (_end_callbacks, end)):
        if ours in callbacks:
            callbacks.remove(ours)


def patches(around_switch: MakeWrapper, around_compile: MakeWrapper) -> list[Patch]:
    """Return the patches of dynamo's own functions, as far as this torch has them.

    Args:
        around_switch: wraps the functions that switch dynamo on before compiled code and off after.
        around_compile: wraps the method that looks up what a compiled module will call.
    """
    wanted = (
        (_eval_frame, "set_eval_frame", around_switch),
        (_eval_frame, "_maybe_set_eval_frame", around_switch),
        (_optimized_module, "_initialize", around_compile),
    )
    return [Patch(owner, name, make) for owner, name, make in wanted if hasattr(owner, name)]


def compiled_calls(frame: FrameType | None) -> Iterator[tuple[object, tuple[object, ...]]]:
    """Yield each call of a compiled function in a frame's stack: what it compiles, its arguments.

    Args:
        frame: the innermost frame to look at.
    """
    while frame is not None:
        if frame.f_globals.get("__name__") == EVAL_FRAME:
            names = frame.f_locals
            if callable(names.get("callback")) and {"fn", "args", "kwargs"} <= names.keys():
                yield names["fn"], (names["args"], names["kwargs"])
        frame = frame.f_back


def sees_compiled_code() -> bool:
    """Tell whether this torch lets a guard see when compiled code runs."""
    return _set_eval_frame is not None
