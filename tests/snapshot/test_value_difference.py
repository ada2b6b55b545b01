"""A change of values is put into words: how many, how far, where, and from what to what."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, example, given, settings, strategies as st
from torch import Tensor

from pytest_bninvariants.snapshot.value_difference import arrow
from tests.snapshot.holding import Holder, replaced_by, told


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ([0.0, 1.0, 2.0], [0.0, 1.25, 2.0], "1 of 3 values, max |d| 2.5e-01 at [1]: 1.0 -> 1.25"),
        ([1.0, 1.0], [1.5, -7.0], "2 of 2 values, max |d| 8.0e+00 at [1]: 1.0 -> -7.0"),
        ([0.0, -0.0], [0.0, 0.0], "1 of 2 values, max |d| 0.0e+00 at [1]: -0.0 -> 0.0"),
        ([0.0, 2.0], [math.nan, 1.0], "2 of 2 values at [0]: 0.0 -> nan"),
        ([math.inf, 1.0], [math.inf, 1.0], None),
        ([math.nan, 1.0], [math.nan, 1.0], None),
        ([math.nan, 1.0], [math.nan, 2.0], "1 of 2 values, max |d| 1.0e+00 at [1]: 1.0 -> 2.0"),
        ([math.inf, 1.0], [math.inf, 2.0], "1 of 2 values, max |d| 1.0e+00 at [1]: 1.0 -> 2.0"),
        ([1.0, math.inf], [1.5, -math.inf], "2 of 2 values at [1]: inf -> -inf"),
        ([1e20], [1e-20], "1 of 1 values, max |d| 1.0e+20 at [0]: 1e+20 -> 1e-20"),
        ([100000.0], [100001.0], "1 of 1 values, max |d| 1.0e+00 at [0]: 100000.0 -> 100001.0"),
    ],
)
def test_a_change_is_told_by_its_count_its_size_and_where_it_is_largest(
    old: list[float], new: list[float], text: str | None
) -> None:
    for dtype in (torch.float64, torch.float32):
        values = torch.tensor(new, dtype=dtype)
        assert told(torch.tensor(old, dtype=dtype), lambda h, v=values: h.x.copy_(v)) == text


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (torch.tensor(0), torch.tensor(1), "0 -> 1"),
        (torch.tensor(0.0), torch.tensor(0.0131), "0.0 -> 0.0131"),
        (torch.tensor(False), torch.tensor(True), ("False -> True", "0 -> 1")),
        (torch.tensor(2**60), torch.tensor(2**60 + 1), f"{2**60} -> {2**60 + 1}"),
        (torch.tensor(1j), torch.tensor(1 + 1j), ("0+1j -> 1+1j", "1j -> 1+1j")),
        (torch.tensor(1.0), torch.tensor(1.0 + 2**-23), "1.0 -> 1.0000001"),
        (
            torch.tensor([1, 2]),
            torch.tensor([1, 5]),
            "1 of 2 values, max |d| 3.0e+00 at [1]: 2 -> 5",
        ),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(0.5)),
            "1 of 6 values, max |d| 5.0e-01 at [1, 2]: 0.0 -> 0.5",
        ),
        (
            torch.zeros(2, dtype=torch.complex64),
            torch.tensor([0, 3 + 4j]),
            "1 of 2 values, max |d| 5.0e+00 at [1]: 0+0j -> 3+4j",
        ),
        (torch.zeros(2), torch.zeros(3), "shape (2,) -> (3,)"),
        (torch.zeros(2), torch.tensor(0.0), "shape (2,) -> ()"),
        (torch.zeros(2, 1), torch.zeros(1, 2), "shape (2, 1) -> (1, 2)"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float16), "float32 -> float16"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32), "float32 -> int32"),
    ],
)
def test_the_text_of_a_change(old: Tensor, new: Tensor, text: str | tuple[str, ...]) -> None:
    found = told(old, replaced_by(new))
    assert found == text or found in text


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda x: x.view(torch.int32), "float32 -> int32"),
        (lambda x: x.t(), "2 of 4 values, max |d| 1.0e+00 at [0, 1]: 1.0 -> 2.0"),
        (lambda x: x.view(4), "shape (2, 2) -> (4,)"),
        (
            lambda x: x.as_strided((2, 2), (1, 1)),
            "2 of 4 values, max |d| 1.0e+00 at [1, 0]: 2.0 -> 1.0",
        ),
    ],
)
def test_another_look_at_the_same_memory_is_told(
    other: Callable[[Tensor], Tensor], text: str
) -> None:
    def look(holder: Holder) -> None:
        holder.x.data = other(holder.x.data)

    assert told(torch.arange(4.0).view(2, 2), look) == text


def test_a_transposed_tensors_index_is_its_own_and_not_its_memorys() -> None:
    x = torch.zeros(2, 3).t()
    text = told(x, lambda holder: holder.x[2, 1].fill_(1))
    assert text == "1 of 6 values, max |d| 1.0e+00 at [2, 1]: 0.0 -> 1.0"


def test_unsigned_values_keep_their_sign() -> None:
    if not hasattr(torch, "uint64"):
        return
    old, new = (
        torch.tensor([2**63], dtype=torch.uint64),
        torch.tensor([2**64 - 1], dtype=torch.uint64),
    )
    text = told(old, replaced_by(new))
    assert text is not None
    assert text.endswith(f"{2**63} -> {2**64 - 1}")


floats = st.floats(allow_nan=False)


@settings(deadline=None)
@given(floats, floats)
@example(0.1 + 0.2, 0.3)
@example(0.0, -0.0)
@example(1.0, math.nextafter(1.0, 2.0))
def test_an_arrow_has_digits_enough_to_tell_two_numbers_apart(old: float, new: float) -> None:
    assume(repr(old) != repr(new))
    left, right = arrow(old, new).split(" -> ")
    assert left != right
    assert math.isclose(float(left), old, rel_tol=0.01, abs_tol=5e-324)
    assert math.isclose(float(right), new, rel_tol=0.01, abs_tol=5e-324)


@settings(deadline=None)
@given(floats)
def test_an_arrow_tells_a_number_and_its_neighbour_apart(number: float) -> None:
    neighbour = math.nextafter(number, math.inf)
    assume(neighbour != number)
    left, right = arrow(number, neighbour).split(" -> ")
    assert left != right


@settings(deadline=None)
@given(st.integers(), st.integers())
def test_an_arrow_between_integers_is_exact(old: int, new: int) -> None:
    assert arrow(old, new) == f"{old} -> {new}"


@settings(deadline=None)
@given(st.complex_numbers(allow_nan=False), st.complex_numbers(allow_nan=False))
def test_an_arrow_tells_complex_numbers_apart(old: complex, new: complex) -> None:
    assume(old != new)
    left, right = arrow(old, new).split(" -> ")
    assert left != right


def test_a_users_default_dtype_does_not_change_the_text() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        text = told(torch.zeros(2, dtype=torch.float32), lambda holder: holder.x.add_(1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert text == "2 of 2 values, max |d| 1.0e+00 at [0]: 0.0 -> 1.0"
