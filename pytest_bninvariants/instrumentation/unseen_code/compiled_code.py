"""Tell observers when dynamo compiles, and when code runs that it may have compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.instrumentation.norm_calls import norm_hooks
from pytest_bninvariants.instrumentation.parameter_reads import read_hooks
from pytest_bninvariants.torch_internals import dynamo, private_api
from pytest_bninvariants.torch_internals.dynamo import hidden_from_dynamo, skipped_by_dynamo
from pytest_bninvariants.torch_internals.patches import Switch

_Function = Callable[..., Any]


def observing_eval_frame(original: _Function, switch: Switch) -> _Function:
    """Wrap the function that switches dynamo on before compiled code and off after it.

    A callback switches it on; None or False switches it off.
    """

    @skipped_by_dynamo
    def set_eval_frame(callback: Any) -> Any:
        if switch.on and callback is not None and callback is not False:
            tell_compiled_code()
            _tell_compiled_in_place(sys._getframe(1))
            norm_hooks.yield_to_compiled_code(sys._getframe(1))
            read_hooks.suspend()
        elif switch.on:
            norm_hooks.return_from_frame(sys._getframe(1))
            if not norm_hooks.off_for_compiled_code:
                read_hooks.resume()
        return original(callback)

    return set_eval_frame


def tell_compiled_code() -> None:
    """Tell observers that dynamo compiles, or that compiled code runs."""
    for observer in observer_api.observers_here():
        observer.saw_compiled_code()


@hidden_from_dynamo
def _tell_compiled_in_place(frame: FrameType | None) -> None:
    """Tell observers of a module that runs compiled code instead of the wrapped `_call_impl`."""
    while frame is not None and frame.f_globals.get("__name__") == dynamo.EVAL_FRAME:
        frame = frame.f_back
    if frame is not None and frame.f_code is private_api.call_code:
        module = frame.f_locals["self"]
        for observer in observer_api.observers_here():
            observer.saw_forward(module)
