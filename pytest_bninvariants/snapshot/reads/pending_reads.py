"""Put off reading what devices hold: the host asks for many tensors at once, and waits once."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.devices import wait_for
from pytest_bninvariants.snapshot.buckets import fit_in_buckets
from pytest_bninvariants.snapshot.host_copies import keep_on_host
from pytest_bninvariants.snapshot.tensor_bytes import OUT_OF_MEMORY, READ_ERRORS

# how much may be pending, so that memory does not grow with the length of a step
_MOST_READS, _MOST_BYTES = 1024, 2**23


class _Read(NamedTuple):
    tensors: Sequence[Tensor]
    use: Callable[[list[Tensor]], None]


class PendingReads:
    """What is to be read on the host, in order, and who uses it; the host waits in `settle` only.

    The caller must hold `undisturbed()`.
    """

    def __init__(self) -> None:
        self._reads: list[_Read] = []
        self._bytes = 0
        self._lock = threading.RLock()

    def must_wait(self, tensors: Iterable[Tensor]) -> bool:
        """Tell whether to put off a read: another one waits, or some tensor is on a device."""
        return bool(self._reads) or any(each.device.type != "cpu" for each in tensors)

    def add(self, tensors: Sequence[Tensor], use: Callable[[list[Tensor]], None]) -> None:
        """Put off a read.

        Args:
            tensors: plain tensors that nobody will write to.
            use: what to call with them on the host: at once, if nothing waits for a device.
        """
        with self._lock:
            self._reads.append(_Read(tensors, use))
            self._bytes += sum(tensor.nbytes for tensor in tensors)
            waits = len(self._reads) > 1 or any(each.device.type != "cpu" for each in tensors)
            if not waits or len(self._reads) >= _MOST_READS or self._bytes >= _MOST_BYTES:
                self.settle()

    def settle(self) -> None:
        """Read what is pending."""
        with self._lock:
            reads, self._reads, self._bytes = self._reads, [], 0
            on_host = iter(read_together([each for read in reads for each in read.tensors]))
            for read in reads:
                read.use([next(on_host) for _ in read.tensors])


def read_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return plain tensors on the host; the host waits once for each device.

    Those that are on the host already are returned as they are.
    """
    numbers_on: dict[torch.device, list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        if tensor.device.type != "cpu":
            numbers_on[tensor.device].append(number)
    copies = list(tensors)
    wait_for(numbers_on)
    for numbers in numbers_on.values():
        flat = [tensors[number].reshape(-1).view(torch.uint8) for number in numbers]
        pieces = [piece.clone() for piece in move_to_host(flat)]  # each is aligned
        for number, piece in zip(numbers, pieces, strict=True):
            copies[number] = piece.view(tensors[number].dtype).view(tensors[number].shape)
    return copies


def move_to_host(pieces: list[Tensor]) -> list[Tensor]:
    """Return copies on the host of flat uint8 tensors of one device, by a single copy.

    Args:
        pieces: the tensors; those that are to be viewed as wider values come before narrower ones.
    """
    if not pieces:
        return []
    try:
        joined = torch.cat(pieces).cpu()
    except OUT_OF_MEMORY:  # of the device, to join them
        return [piece.cpu() for piece in pieces]
    return list(torch.split_with_sizes(joined, [piece.numel() for piece in pieces]))


def keep_together(tensors: Iterable[Tensor]) -> None:
    """Keep copies of tensors of devices for all who read them in this `reading_once`."""
    plain = []
    for tensor in tensors:
        try:
            if tensor.device.type != "cpu" and fit_in_buckets([tensor]):
                plain.append(tensor)
        except READ_ERRORS:
            continue  # who reads it is told why
    values = [tensor.detach().resolve_neg() for tensor in plain]
    for tensor, copy in zip(plain, read_together(values), strict=True):
        keep_on_host(tensor, copy)
