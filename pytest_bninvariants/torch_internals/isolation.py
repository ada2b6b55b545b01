"""Keep a guard's own work from being seen or changed by the user's code."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from pytest_bninvariants.torch_internals import private_api


def in_transform() -> bool:
    """Tell whether a function transform such as vmap runs: its tensors do not hold plain values."""
    return private_api.peek_interpreter_stack() is not None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep a user's dispatch and function modes from seeing or changing what a guard does.

    Garbage collection is off meanwhile: a guard keeps many tensors and makes no garbage, and a
    collection that visits all objects of the process takes longer than the guard's own work.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with private_api.DisableTorchFunction(), _without_modes(), torch.no_grad():
            yield
    finally:
        if collects:
            gc.enable()


def _without_modes() -> AbstractContextManager[object]:
    """Switch dispatch modes off, but only if there are any: it takes as long as copying a layer."""
    active = private_api.count_pre_dispatch_modes() or private_api.count_dispatch_modes()
    return private_api.disable_current_modes() if active else nullcontext()
