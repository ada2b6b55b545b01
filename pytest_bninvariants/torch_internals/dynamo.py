"""Keep this package's functions out of what dynamo compiles, and tell whether it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")


_R = TypeVar("_R")


def _find_dynamo() -> tuple[Any, Any]:
    """Return what has dynamo skip a function's frames, and what tells whether it runs.

    Both are private to torch, and where one is missing there is a slower way.
    """
    try:
        from torch._C._dynamo.eval_frame import get_eval_frame_callback
        from torch._dynamo.eval_frame import skip_code
    except ImportError:
        return None, None
    return skip_code, get_eval_frame_callback


_skip_code, _callback = _find_dynamo()


def passed_over(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have dynamo, which may be running what calls a function, leave it as it is.

    It may still compile what the function calls.
    """
    if _skip_code is not None:
        _skip_code(function.__code__)
    return function


@passed_over
def dynamo_runs() -> bool:
    """Tell whether dynamo looks at the frames that run, as far as this torch tells."""
    return _callback is not None and _callback() is not None


def unseen(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep dynamo, which may be running what calls a function, from compiling it.

    Where it runs nothing, the function is called as it is: switching dynamo off and on takes
    longer than most of these functions do.
    """
    hidden: Callable[_P, _R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    if _skip_code is None or _callback is None:
        return hidden

    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return (function if _callback() is None else hidden)(*args, **kwargs)

    return passed_over(call)
