"""Which arguments an operator may write to, by what it declares."""

from __future__ import annotations

from typing import Any

import torch

from pytest_bninvariants.trace.operators import tensors_in, written_arguments

A, B, C, D = (torch.full((1,), float(number)) for number in range(4))
ATEN: Any = torch.ops.aten


def test_an_operator_of_torch_writes_to_what_it_declares() -> None:
    assert written_arguments(ATEN.add_.Tensor, (A, B), {}) == [A]
    assert written_arguments(ATEN.add.Tensor, (A, B), {}) == []
    assert written_arguments(ATEN.add.out, (A, B), {"out": C}) == [C]


def test_statistics_are_written_though_no_schema_says_so() -> None:
    given = (A, None, None, B, C, True, 0.1, 1e-5)
    written = written_arguments(ATEN.native_batch_norm.default, given, {})
    assert [id(each) for each in written] == [id(B), id(C)]


def test_an_operator_of_another_library_may_write_to_all() -> None:
    with torch.library._scoped_library("bninvariants_test", "DEF") as library:
        library.define("own(Tensor a, Tensor b) -> Tensor")
        own = torch.ops.bninvariants_test.own.default
        assert [id(each) for each in written_arguments(own, (A,), {"b": B})] == [id(A), id(B)]


def test_an_operator_without_a_schema_may_write_to_its_first_arguments() -> None:
    arguments = tuple(range(9))
    assert written_arguments(object(), arguments, {}) == [*range(8)]


def test_tensors_in_lists_are_found() -> None:
    assert [id(each) for each in tensors_in([A, 1, [B, (C, [D])], None, "a"])] == [
        id(each) for each in (A, B, C, D)
    ]
