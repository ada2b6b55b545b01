"""Keep some tensors around one operation of the step, and tell which it moved."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pytest_bninvariants.snapshot.bucket_readings import compare_with_buckets
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
        unchanged = compare_with_buckets(self._buckets, self._tensors).unchanged
        for key, content in self._contents.items():
            if same_content(content, self._tensors[key]):
                unchanged.add(key)
        return [key not in unchanged for key in self._tensors]
