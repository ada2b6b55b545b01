"""Keep some tensors around one operation of the step, and tell which it moved."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pytest_bninvariants.snapshot.bucket_readings import BucketReading, ask_devices
from pytest_bninvariants.snapshot.buckets import fill_buckets
from pytest_bninvariants.snapshot.tensor_bytes import content_of, same_content


class OperationSnapshot:
    """The bytes of tensors before an operation, or their fingerprints above the memory budget.

    The caller must hold `undisturbed()`.

    Args:
        tensors: the tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = dict(zip(map(str, range(len(tensors))), tensors, strict=True))
        self._buckets = fill_buckets(self._tensors, within_step=True)
        in_buckets = {key for bucket in self._buckets for key in bucket.keys}
        others = self._tensors.keys() - in_buckets
        self._contents = {key: content_of(self._tensors[key]) for key in others}

    def moved(self) -> list[bool]:
        """Tell of each tensor whether its bytes differ now; the host waits once for each device."""
        moved = {
            k for k, kept in self._contents.items() if not same_content(kept, self._tensors[k])
        }
        readings = []
        for bucket in self._buckets:
            tensors = [self._tensors[key] for key in bucket.keys]
            if bucket.has_placement_of(tensors) or bucket.fits(tensors):
                readings.append(BucketReading.read(bucket, tensors))
            else:
                moved.update(bucket.keys)
        ask_devices(readings)
        for reading in readings:
            if not reading.is_equal:
                moved.update(reading.bucket.differing(reading.flat))
        return [key in moved for key in self._tensors]
