"""Reads that are put off keep their order, and are done at once where no device is waited for."""

from __future__ import annotations

import torch

from pytest_bninvariants.snapshot.reads.pending_reads import PendingReads, read_together


def test_what_is_on_the_host_is_used_at_once() -> None:
    used: list[float] = []
    reads = PendingReads()
    reads.add([torch.tensor(1.0)], lambda tensors: used.append(float(tensors[0])))
    reads.add([], lambda tensors: used.append(len(tensors)))
    assert used == [1.0, 0]


def test_tensors_on_the_host_are_returned_as_they_are() -> None:
    tensors = [torch.ones(2), torch.tensor(3)]
    assert [id(each) for each in read_together(tensors)] == [id(each) for each in tensors]
