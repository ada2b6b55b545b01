"""Read what devices hold: the host asks for many tensors at once, and waits once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from pytest_bninvariants.devices import wait_for
from pytest_bninvariants.snapshot.tensor_bytes import OUT_OF_MEMORY


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
