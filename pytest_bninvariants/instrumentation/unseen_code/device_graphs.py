"""Tell observers of device graphs, such as CUDA graphs: who captures one, and who replays one.

What is called during a capture is recorded, and does not run; a replay runs it without Python. So a
replay counts as compiled code. A hook that read a value during a capture would end it with an
error, and what a hook computed would be recorded and run in each replay: observers are told nothing
but which modules are captured.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from pytest_bninvariants.devices import graph_classes
from pytest_bninvariants.instrumentation import observer_api
from pytest_bninvariants.torch_internals.dynamo import hidden_from_dynamo, skipped_by_dynamo
from pytest_bninvariants.torch_internals.patches import Patch, Patches, Switch

_Function = Callable[..., Any]


class GraphHooks:
    """Wrap captures and replays, of all kinds of graphs that torch has by now."""

    def __init__(self) -> None:
        self._patches: dict[type, Patches] = {}

    def install(self) -> None:
        """Put the wrappers on; a package may have added a kind since the last time."""
        for owner in graph_classes():
            if owner not in self._patches:
                self._patches[owner] = Patches(
                    Patch(owner, "capture_begin", _observing_begin),
                    Patch(owner, "capture_end", _observing_end),
                    Patch(owner, "replay", _observing_replay),
                )
            self._patches[owner].install()

    def remove(self) -> None:
        """Take the wrappers off."""
        for patches in self._patches.values():
            patches.remove()


def _observing_begin(original: _Function, switch: Switch) -> _Function:
    @skipped_by_dynamo
    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if switch.on:
            observer_api.begin_capture()
        return result

    return capture_begin


def _observing_end(original: _Function, switch: Switch) -> _Function:
    @skipped_by_dynamo
    def capture_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        finally:
            observer_api.end_capture()

    return capture_end


def _observing_replay(original: _Function, switch: Switch) -> _Function:
    @skipped_by_dynamo
    def replay(self: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if switch.on:
            _tell_replay()
        return original(self, *args, **kwargs)

    return replay


@hidden_from_dynamo
def _tell_replay() -> None:
    frame = sys._getframe(1)
    for observer in observer_api.observers_here():
        observer.saw_graph_replay(frame)


@hidden_from_dynamo
def tell_captured(module: nn.Module) -> None:
    """Tell observers of a module that is called during a capture."""
    for observer in observer_api.observers_of_this_thread():
        observer.saw_captured_module(module)


graph_hooks = GraphHooks()
