"""Tell whether a tensor was cast to a narrower type and back."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_bninvariants.invariants.content import UNREADABLE, same_bytes
from pytest_bninvariants.invariants.snapshot import Kept, floats

_TYPES = [(name, getattr(torch, name)) for name in ("float32", "bfloat16", "float16")]


@torch.no_grad()
def casts_of(kept: Kept, tensor: Tensor) -> frozenset[str]:
    """Return the types by whose rounding a tensor's values came of those that were kept.

    Args:
        kept: what a snapshot holds of the tensor.
        tensor: the tensor, now.
    """
    both = floats(kept, tensor)
    if both is None or same_bytes(*both):
        return frozenset()
    old, now = both
    values = old.view(kept.dtype)
    try:
        rounded = {name: values.to(each).to(kept.dtype).view(torch.uint8) for name, each in _TYPES}
    except UNREADABLE:  # dtypes that torch only stores
        return frozenset()
    return frozenset(name for name, each in rounded.items() if same_bytes(each, now))
