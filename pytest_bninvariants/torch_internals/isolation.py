"""Keep what is guarded from hearing of the guard's own work."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch._C import _len_torch_dispatch_stack
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.utils._python_dispatch import _disable_current_modes


def in_transform() -> bool:
    """Tell whether a function transform such as vmap runs, whose values are none of a layer's."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep a user's dispatch and function modes from seeing or changing what a guard does.

    Nor is garbage collected meanwhile: what a guard keeps of many tensors is none, and to look for
    some among all that a process holds takes longer than the rest.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch._C.DisableTorchFunction(), _without_modes(), torch.no_grad():
            yield
    finally:
        if collects:
            gc.enable()


def _without_modes() -> AbstractContextManager[object]:
    """Take the modes off for a while, if there are any: that takes as long as copying a layer."""
    before = _len_torch_dispatch_stack_pre_dispatch()  # type: ignore[no-untyped-call]
    there = before or _len_torch_dispatch_stack()
    return _disable_current_modes() if there else nullcontext()
