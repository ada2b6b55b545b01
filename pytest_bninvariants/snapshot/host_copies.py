"""Read the small tensors of a device on the host, once and together.

Each answer that the host wants from a device is a wait for all that the device still has to do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from pytest_bninvariants.torch_internals.sharding import local_tensor

_copies: ContextVar[dict[int, Tensor] | None] = ContextVar("host copies", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Let `on_host` find, until the block ends, what `keep_on_host` was given in it."""
    token = _copies.set({})
    try:
        yield
    finally:
        _copies.reset(token)


def keep_on_host(tensor: Tensor, copy: Tensor) -> None:
    """Keep a tensor's copy on the host for those who read the tensor in this `reading_once`."""
    copies = _copies.get()
    if copies is not None:
        copies[id(tensor)] = copy


def on_host(tensor: Tensor) -> Tensor:
    """Return the host's copy of a tensor, if one was kept, or else the tensor."""
    copies = _copies.get()
    return copies.get(id(tensor), tensor) if copies else tensor


def widen(tensor: Tensor) -> Tensor:
    """Return a tensor's values on the host in float64 or complex128, which a device may lack.

    Of a DTensor these are the values that this rank holds.
    """
    tensor = local_tensor(tensor)
    return tensor.detach().cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def read_flags(flags: Sequence[Tensor]) -> list[bool]:
    """Return tensors without dimensions as bools; the host waits once for each device."""
    numbers_on: dict[torch.device, list[int]] = defaultdict(list)
    for number, flag in enumerate(flags):
        numbers_on[flag.device].append(number)
    answers = [False] * len(flags)
    for numbers in numbers_on.values():
        told = torch.stack([flags[number] for number in numbers]).tolist()
        for number, answer in zip(numbers, told, strict=True):
            answers[number] = bool(answer)
    return answers
