"""Tell whether a tensor was cast to a narrower type and back."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_bninvariants.invariants.content import UNREADABLE, as_bytes, same_bytes
from pytest_bninvariants.invariants.snapshot import Facts, Kept

_TYPES = [(name, getattr(torch, name)) for name in ("float32", "bfloat16", "float16")]


@torch.no_grad()
def casts_of(kept: Kept, tensor: Tensor) -> frozenset[str]:
    """Return the types by whose rounding a tensor's values came of those that were kept.

    Args:
        kept: what a snapshot holds of the tensor.
        tensor: the tensor, now.
    """
    dtype, found = kept.dtype, kept.parts
    if not dtype.is_floating_point or found is None or Facts.of(tensor)[:3] != kept.facts[:3]:
        return frozenset()
    try:
        (old,), now = found.content, as_bytes(tensor.detach()).to(kept.device)
        values = old.view(dtype)
        rounded = {name: values.to(type_).to(dtype).view(torch.uint8) for name, type_ in _TYPES}
    except (*UNREADABLE, ValueError):  # of several parts
        return frozenset()
    if same_bytes(old, now):
        return frozenset()
    return frozenset(name for name, each in rounded.items() if same_bytes(each, now))
