"""A tensor's copy on the host is read in place of the tensor, until the block ends."""

from __future__ import annotations

import torch

from pytest_bninvariants.snapshot.host_copies import (
    keep_on_host,
    on_host,
    read_flags,
    reading_once,
    widen,
)


def test_a_copy_is_read_until_the_block_ends() -> None:
    tensor, other, copy = torch.zeros(2), torch.zeros(2), torch.ones(2)
    with reading_once():
        keep_on_host(tensor, copy)
        assert on_host(tensor) is copy
        assert on_host(other) is other
        with reading_once():
            assert on_host(tensor) is tensor
        assert on_host(tensor) is copy
    assert on_host(tensor) is tensor
    keep_on_host(tensor, copy)
    assert on_host(tensor) is tensor


def test_flags_are_told_in_their_order() -> None:
    assert read_flags([torch.tensor(True), torch.tensor(0.0), torch.tensor(3)]) == [
        True,
        False,
        True,
    ]
    assert read_flags([]) == []


def test_values_are_widened_without_losing_the_imaginary_part() -> None:
    assert widen(torch.tensor([1.5], dtype=torch.float16, requires_grad=True)).tolist() == [1.5]
    wide = widen(torch.tensor([1 + 2j], dtype=torch.complex64))
    assert (wide.dtype, wide.tolist()) == (torch.complex128, [1 + 2j])
