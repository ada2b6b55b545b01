"""Keep what is guarded from hearing of the guard's own work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep a user's dispatch and function modes from seeing or changing what a guard does."""
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
        yield
