"""Compare what buckets kept with what their tensors hold now, with one wait for each device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_bninvariants.snapshot.buckets import Bucket
from pytest_bninvariants.snapshot.host_copies import keep_on_host
from pytest_bninvariants.snapshot.reads.together import move_to_host
from pytest_bninvariants.snapshot.tensor_bytes import OUT_OF_MEMORY, differ, same_bytes


class BucketComparison(NamedTuple):
    """The result of comparing the buckets of a snapshot.

    Args:
        unchanged: the keys of the tensors in buckets that still have the kept bytes.
        untouched: whether all tensors in buckets have them, and lie where they lay.
    """

    unchanged: set[str]
    untouched: bool


@dataclass(slots=True, eq=False)
class BucketReading:
    """What a bucket's tensors hold now, beside what the bucket kept.

    Args:
        bucket: the bucket.
        tensors: its tensors, now.
        flat: their bytes or fingerprints, as `Bucket.read` returns them.
        answer: whether they differ, once a device was asked.
    """

    bucket: Bucket
    tensors: list[Tensor]
    flat: Tensor
    answer: Tensor | None = None

    @classmethod
    def read(cls, bucket: Bucket, tensors: list[Tensor]) -> BucketReading:
        """Read tensors where they are, or on the host if their device has no memory for that."""
        if not bucket.goes_to_host:
            with suppress(OUT_OF_MEMORY):
                return cls(bucket, tensors, bucket.read(tensors))
        bucket.flat = bucket.flat.cpu()
        return cls(bucket, tensors, bucket.read([each.detach().cpu() for each in tensors]))

    @property
    def dtype(self) -> torch.dtype:
        """Return the tensors' dtype."""
        return self.bucket.dtype

    @property
    def is_equal(self) -> bool:
        """Tell whether the tensors hold what was kept."""
        if self.answer is None:
            return same_bytes(self.bucket.flat, self.flat)
        return not self.answer

    def move_to_host(self, copy: Tensor) -> None:
        """Take a copy on the host in place of what is on the device, for all who read later."""
        self.flat = copy
        for tensor, flat in zip(self.tensors, self.bucket.split(copy), strict=True):
            keep_on_host(tensor, flat.view(tensor.dtype).view(tensor.shape))


def ask_devices(readings: Iterable[BucketReading]) -> None:
    """Move to the host what is small, and whether the rest differs: one wait for each device."""
    readings_on: dict[torch.device, list[BucketReading]] = defaultdict(list)
    for reading in readings:
        if reading.flat.device.type != "cpu":
            readings_on[reading.flat.device].append(reading)
    for some in readings_on.values():
        small = [reading for reading in some if reading.bucket.is_small]
        large = [reading for reading in some if not reading.bucket.is_small]
        kept = [each.bucket for each in small if each.bucket.flat.device.type != "cpu"]
        movable: list[Bucket | BucketReading] = [*kept, *small]
        movable.sort(key=lambda each: -each.dtype.itemsize)
        flags = [differ(each.bucket.flat, each.flat).view(1) for each in large]
        pieces = [*(each.flat for each in movable), *(flag.view(torch.uint8) for flag in flags)]
        on_host = iter(move_to_host(pieces))
        for each in movable:
            each.move_to_host(next(on_host))
        for reading in large:
            reading.answer = next(on_host)


def compare_with_buckets(
    buckets: Iterable[Bucket], tensors: Mapping[str, Tensor]
) -> BucketComparison:
    """Compare what buckets kept with what tensors hold now; the host waits once for each device.

    Args:
        buckets: the buckets.
        tensors: the tensors by key; those that are gone are missing.
    """
    readings: list[BucketReading] = []
    untouched = True
    for bucket in buckets:
        present = [tensors[key] for key in bucket.keys if key in tensors]
        stayed = bucket.has_placement_of(present)
        if stayed or bucket.fits(present):
            readings.append(BucketReading.read(bucket, present))
        untouched = untouched and stayed
    unchanged: set[str] = set()
    ask_devices(readings)
    for reading in readings:
        unchanged.update(reading.bucket.keys)
        if not reading.is_equal:
            unchanged.difference_update(reading.bucket.differing(reading.flat))
            untouched = False
    return BucketComparison(unchanged, untouched)
