"""Keep a guard's own work from being seen or changed by the user's code."""

from __future__ import annotations

import gc
from types import TracebackType

import torch

from pytest_bninvariants.torch_internals import private_api


def in_transform() -> bool:
    """Tell whether a function transform such as vmap runs: its tensors do not hold plain values."""
    return private_api.peek_interpreter_stack() is not None


class undisturbed:  # noqa: N801
    """Keep a user's dispatch and function modes from seeing or changing what a guard does.

    Garbage collection is off meanwhile: a guard keeps many tensors and makes no garbage, and a
    collection that visits all objects of the process takes longer than the guard's own work.

    A guard enters it around each of a layer's forwards, so it is no generator.
    """

    __slots__ = ("_collects", "_contexts")

    def __enter__(self) -> None:
        self._collects = gc.isenabled()
        gc.disable()
        self._contexts = [private_api.DisableTorchFunction(), torch.no_grad()]
        if private_api.count_pre_dispatch_modes() or private_api.count_dispatch_modes():
            self._contexts.append(private_api.disable_current_modes())
        for context in self._contexts:
            context.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for context in reversed(self._contexts):
            context.__exit__(kind, error, traceback)
        if self._collects:
            gc.enable()
