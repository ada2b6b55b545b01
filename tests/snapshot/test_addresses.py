"""Tensors share memory if they are the same, or begin at one address."""

from __future__ import annotations

import torch

from pytest_bninvariants.snapshot.addresses import (
    address,
    addresses,
    group_by_address,
    share_memory,
    spans,
)


def test_tensors_of_one_memory_share_it_and_others_do_not() -> None:
    tensor = torch.zeros(4)
    assert share_memory(tensor, tensor)
    assert share_memory(tensor, tensor.view(2, 2))
    assert not share_memory(tensor, tensor.clone())
    assert not share_memory(tensor, tensor[1:])


def test_tensors_without_memory_share_none() -> None:
    meta, sparse = torch.zeros(2, device="meta"), torch.zeros(2).to_sparse()
    assert [address(each) for each in (meta, sparse, torch.empty(0))] == [0, 0, 0]
    assert share_memory(meta, meta)
    assert not share_memory(meta, sparse)
    assert addresses([meta, sparse]) == set()
    assert group_by_address([(meta, 1), ("text", 2), (None, 3)]) == {}


def test_items_are_grouped_by_where_their_tensors_lie() -> None:
    tensor, other = torch.zeros(4), torch.zeros(4)
    pairs = [(tensor, "a"), (other, "b"), (tensor[:2], "c")]
    assert group_by_address(pairs) == {tensor.data_ptr(): ["a", "c"], other.data_ptr(): ["b"]}
    assert addresses([tensor, other, tensor]) == {tensor.data_ptr(), other.data_ptr()}


def test_a_span_goes_from_the_first_byte_to_the_last() -> None:
    tensor = torch.zeros(4, 3)
    start = tensor.data_ptr()
    assert spans(tensor) == [(start, start + 48)]
    assert spans(tensor[:, :2]) == [(start, start + 44)]
    assert spans(tensor.t()) == [(start, start + 48)]
    assert spans(torch.zeros(2, device="meta")) == []
    sparse = torch.ones(2).to_sparse()
    assert [end - begin for begin, end in spans(sparse)] == [16, 8]
