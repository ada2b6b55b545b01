"""Fingerprints of chunks stand in for bytes that are too many to keep.

Fingerprints by torch's operators always find a single flipped bit. Of arbitrary writes to a chunk,
xxhash misses about one in 2**64, and torch's operators miss one in 2**32 or fewer, depending on the
bits.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from pytest_bninvariants.snapshot.tensor_bytes import OUT_OF_MEMORY

Method = Literal["xxhash", "torch operators"]
CHUNK = 2**20  # bytes: 2**17 words, whose weights and products fit in a processor's cache
# Odd multipliers, as int64: 0x9e3779b97f4a7c15 of the golden ratio, and 0xbf58476d1ce4e5b9, both of
# splitmix64: https://prng.di.unimi.it/splitmix64.c
_SCATTER = (-7046029254386353131, -4658895280553007687)


def method_on(device: torch.device) -> Method:
    """Return how fingerprints are made on a device."""
    return "xxhash" if device.type == "cpu" and _xxhash() is not None else "torch operators"


@cache
def _xxhash() -> Any:
    try:
        import xxhash
    except ImportError:
        return None
    return xxhash


def fingerprints(flat: Tensor, method: Method) -> Tensor:
    """Return the fingerprints of the chunks of a flat uint8 tensor, as one flat uint8 tensor.

    Args:
        flat: the bytes.
        method: how to compute them; on a GPU, this does not synchronise.
    """
    make = _by_xxhash if method == "xxhash" else _by_operators
    try:
        made = make(flat)
    except OUT_OF_MEMORY:  # on the host they are the same, and each is of eight bytes
        made = make(flat.cpu()).to(flat.device)
    return made.view(torch.uint8)


def _by_xxhash(flat: Tensor) -> Tensor:
    digest = _xxhash().xxh3_64_intdigest
    start, count = flat.data_ptr(), flat.numel()
    digests = [
        digest((ctypes.c_char * min(CHUNK, count - at)).from_address(start + at))
        for at in range(0, count, CHUNK)
    ]
    return torch.tensor([each - 2**63 for each in digests], dtype=torch.int64, device="cpu")


def _by_operators(flat: Tensor) -> Tensor:
    return torch.stack([_weighted(flat[at : at + CHUNK]) for at in range(0, flat.numel(), CHUNK)])


def _weighted(chunk: Tensor) -> Tensor:
    """Return the sum of w (x + (x >> 32)) modulo 2**64 over all words x, each with an odd w.

    The weights make it depend on the position of a word. The logical shift brings the sign bit down
    too: without it, flips of the signs of two words would cancel out, since 2**63 times any odd
    number is 2**63 modulo 2**64.
    """
    words = _in_int64(chunk)
    mixed = words >> 32
    mixed &= 2**32 - 1
    mixed += words
    mixed *= _weights(chunk.device)[: words.numel()]
    return mixed.sum()


def _in_int64(chunk: Tensor) -> Tensor:
    """Return bytes as int64, with zeros up to the next whole word."""
    aligned = chunk if chunk.storage_offset() % 8 == 0 else chunk.clone()
    missing = -chunk.numel() % 8
    whole = torch.nn.functional.pad(aligned, (0, missing)) if missing else aligned
    return whole.view(torch.int64)


@cache
def _weights(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        mixed = torch.arange(1, CHUNK // 8 + 1, dtype=torch.int64, device=device)
        for factor in _SCATTER:
            mixed *= factor
            mixed ^= mixed >> 29
        return mixed | 1
