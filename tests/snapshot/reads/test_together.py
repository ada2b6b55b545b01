"""The host asks for many tensors at once."""

from __future__ import annotations

import torch

from pytest_bninvariants.snapshot.reads.together import read_together


def test_tensors_on_the_host_are_returned_as_they_are() -> None:
    tensors = [torch.ones(2), torch.tensor(3)]
    assert [id(each) for each in read_together(tensors)] == [id(each) for each in tensors]
