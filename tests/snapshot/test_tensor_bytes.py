"""A tensor of any kind is compared by all bytes that make it up, and by nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.snapshot import tensor_bytes
from pytest_bninvariants.snapshot.buckets import fit_in_buckets
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from tests.snapshot.holding import Holder, of_bytes, quantized, replaced_by, told


def storable() -> list[torch.dtype]:
    """Return every dtype of this torch in which plain memory can be read."""
    found = {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
    plain = []
    for dtype in found:
        try:
            of_bytes(torch.zeros(4 * dtype.itemsize, dtype=torch.uint8), dtype)
        except (RuntimeError, NotImplementedError):
            continue
        plain.append(dtype)
    return sorted(plain, key=str)


DTYPES = storable()


def test_no_plain_dtype_of_this_torch_is_left_out() -> None:
    found = {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
    left_out = {str(dtype).removeprefix("torch.") for dtype in found - set(DTYPES)}
    assert left_out <= {"qint8", "quint8", "qint32", "quint4x2", "quint2x4"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 3, 8, 17])
def test_one_flipped_bit_is_found_in_every_dtype(dtype: torch.dtype, count: int) -> None:
    for place in (0, count * dtype.itemsize // 2, count * dtype.itemsize - 1):
        raw = torch.zeros(count * dtype.itemsize, dtype=torch.uint8)

        def flip(_: Holder, raw: Tensor = raw, place: int = place) -> None:
            raw[place] ^= 1

        assert told(of_bytes(raw, dtype), flip) is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_bytes_are_no_change_in_any_dtype(dtype: torch.dtype) -> None:
    raw = (torch.arange(16 * dtype.itemsize, dtype=torch.int64) * 37 % 251).to(torch.uint8)
    if dtype is torch.bool:
        raw %= 2
    assert told(of_bytes(raw, dtype), replaced_by(of_bytes(raw.clone(), dtype))) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cast_is_found_though_the_bytes_are_equal(dtype: torch.dtype) -> None:
    raw = torch.zeros(16, dtype=torch.uint8)
    for other in DTYPES:
        if other.itemsize == dtype.itemsize and other is not dtype:
            text = told(of_bytes(raw, dtype), replaced_by(of_bytes(raw.clone(), other)))
            names = [str(d).removeprefix("torch.") for d in (dtype, other)]
            assert text == f"{names[0]} -> {names[1]}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 1)], ids=str)
def test_empty_tensors_compare_by_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    def build(shape: tuple[int, ...]) -> Tensor:
        return of_bytes(torch.empty(0, dtype=torch.uint8), dtype).reshape(shape)

    assert told(build(shape), replaced_by(build(shape))) is None
    assert told(build(shape), replaced_by(build((0, 7)))) == f"shape {shape} -> (0, 7)"


def is_copied(dtype: torch.dtype) -> bool:
    """Tell whether torch has a kernel that copies a dtype, and so can make it contiguous."""
    try:
        of_bytes(torch.zeros(4 * dtype.itemsize, dtype=torch.uint8), dtype)[::2].contiguous()
    except (RuntimeError, NotImplementedError):
        return False
    return True


COPIED = [dtype for dtype in DTYPES if is_copied(dtype)]


@st.composite
def strided(draw: st.DrawFn) -> tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]:
    """A dtype, a shape, strides that may overlap, and an offset."""
    dtype = draw(st.sampled_from(COPIED))
    dims = draw(st.integers(0, 3))
    shape = tuple(draw(st.integers(1, 4)) for _ in range(dims))
    strides = tuple(draw(st.integers(0, 5)) for _ in range(dims))
    return dtype, shape, strides, draw(st.integers(0, 5))


@settings(deadline=None)
@given(strided(), st.data())
def test_one_flipped_bit_anywhere_is_found_in_any_layout(
    layout: tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int], data: st.DataObject
) -> None:
    dtype, shape, strides, offset = layout
    reach = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    raw = torch.zeros((reach + 2) * dtype.itemsize, dtype=torch.uint8)
    x = of_bytes(raw, dtype).as_strided(shape, strides, offset)
    index = [data.draw(st.integers(0, n - 1)) for n in shape]
    at = offset + sum(i * step for i, step in zip(index, strides, strict=True))
    byte = at * dtype.itemsize + data.draw(st.integers(0, dtype.itemsize - 1))
    bit = 0 if dtype is torch.bool else data.draw(st.integers(0, 7))

    selection = select(Holder(x), Scope())
    kept = take_snapshot(selection.tensors)
    raw[-1] ^= 1  # not a part of the tensor
    assert changes_since(kept, selection.tensors, ()) == []
    raw[byte] ^= 1 << bit
    (change,) = changes_since(kept, selection.tensors, ())
    assert change.kind == "values"
    raw[byte] ^= 1 << bit
    assert changes_since(kept, selection.tensors, ()) == []


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 9), st.integers(0, 9), st.data())
def test_bytes_compare_at_any_length_and_alignment(
    length: int, left: int, right: int, data: st.DataObject
) -> None:
    kept = torch.arange(64, dtype=torch.uint8)[left : left + length].clone()
    a, b = (
        torch.zeros(64, dtype=torch.uint8)[at : at + length].copy_(kept) for at in (left, right)
    )
    assert tensor_bytes.same_bytes(a, b)
    if length:
        place = data.draw(st.integers(0, length - 1))
        b[place] ^= 1 << data.draw(st.integers(0, 7))
        assert not tensor_bytes.same_bytes(a, b)
        assert not tensor_bytes.same_bytes(a, a[:-1])


def quantized_by_channel(
    scale: float = 0.5, zero: int = 0, first: int = 1, axis: int = 0
) -> Tensor:
    scales, zeros = torch.tensor([scale, 0.25]).double(), torch.tensor([zero, 1])
    values = torch.tensor([[first, 2], [3, 4]], dtype=torch.int8)
    return torch._make_per_channel_quantized_tensor(values, scales, zeros, axis)


def coo(value: float = 1.0, column: int = 0) -> Tensor:
    return torch.sparse_coo_tensor(
        torch.tensor([[0, 1], [column, 1]]), torch.tensor([value, 2.0]), (2, 3)
    )


def compressed(layout: torch.layout, value: float = 1.0, at: int = 0) -> Tensor:
    values = torch.tensor([value, 2.0])
    if layout in (torch.sparse_bsr, torch.sparse_bsc):
        values = values.reshape(2, 1, 1)
    return torch.sparse_compressed_tensor(
        torch.tensor([0, 1, 2]), torch.tensor([at, 1]), values, (2, 2), layout=layout
    )


def nested(*shapes: tuple[int, ...], first: float = 0.0) -> Tensor:
    pieces = [torch.arange(math.prod(shape)).float().reshape(shape) for shape in shapes]
    pieces[0] += first
    return torch.nested.nested_tensor(pieces)


def jagged(first: float = 0.0, lengths: tuple[int, ...] = (2, 3)) -> Tensor:
    pieces = [torch.zeros(length) + first for length in lengths]
    return torch.nested.nested_tensor(pieces, layout=torch.jagged)


def conjugated(imaginary: float = 1.0) -> Tensor:
    return torch.tensor([complex(1, imaginary), 2j]).conj()


def negated(imaginary: float = 1.0) -> Tensor:
    return torch.tensor([complex(1, imaginary), 2j]).conj().imag


SPARSE = {
    "csr": torch.sparse_csr,
    "csc": torch.sparse_csc,
    "bsr": torch.sparse_bsr,
    "bsc": torch.sparse_bsc,
}


EXOTIC: dict[str, Callable[[], Tensor]] = {
    "0-d": lambda: torch.tensor(1.0),
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "channels last": lambda: torch.ones(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.ones(1).expand(3, 2),
    "stepped": lambda: torch.arange(9.0)[1::2],
    "odd offset": lambda: torch.arange(9, dtype=torch.uint8)[3:],
    "conjugated": conjugated,
    "negated": negated,
    "negated whole": lambda: torch._neg_view(torch.ones(3)),
    "coo": coo,
    "uncoalesced": lambda: torch.sparse_coo_tensor(torch.zeros(1, 2).long(), torch.ones(2), (2,)),
    "hybrid": lambda: torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.ones(2, 3), (4, 3)),
    **{name: (lambda layout=layout: compressed(layout)) for name, layout in SPARSE.items()},
    "quantized": quantized,
    "quantized by channel": quantized_by_channel,
    "quantized to 4 bits": lambda: torch.quantize_per_channel(
        torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.quint4x2
    ),
    "nested": lambda: nested((2,), (3,)),
    "jagged": jagged,
    "mkldnn": lambda: torch.ones(2, 3).to_mkldnn(),
    "subclass": lambda: TwoTensor(torch.ones(2), torch.zeros(2)),
    "subclass that holds sparse": lambda: TwoTensor(coo(), coo()),
    "parameter": lambda: nn.Parameter(torch.ones(2)),
    "made in inference mode": lambda: _in_inference(),
}


def _in_inference() -> Tensor:
    with torch.inference_mode():
        return torch.ones(3)


@pytest.mark.parametrize("build", EXOTIC.values(), ids=EXOTIC)
def test_an_equal_tensor_of_any_layout_is_no_change(build: Callable[[], Tensor]) -> None:
    same = build()
    assert told(same, lambda _: None) is None
    if type(same).__name__ != "NestedTensor":  # every jagged one has a shape of its own
        assert told(build(), replaced_by(build())) is None


CHANGED: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "conjugated": lambda: (conjugated(), conjugated(2.0)),
    "negated": lambda: (negated(), negated(2.0)),
    "negated or not": lambda: (torch._neg_view(torch.ones(3)), torch.ones(3)),
    "conjugated or not": lambda: (conjugated(), torch.tensor([1 + 1j, 2j])),
    "negated back": lambda: (negated(), -negated()),
    "coo value": lambda: (coo(), coo(3.0)),
    "coo index": lambda: (coo(), coo(column=2)),
    "coo count": lambda: (coo(), torch.eye(2, 3).mul_(torch.tensor([[1], [0]])).to_sparse()),
    **{f"{n} value": (lambda s=s: (compressed(s), compressed(s, 3.0))) for n, s in SPARSE.items()},
    **{f"{n} index": (lambda s=s: (compressed(s), compressed(s, at=1))) for n, s in SPARSE.items()},
    "quantized value": lambda: (quantized(), quantized(first=1.5)),
    "quantized scale": lambda: (quantized(), quantized(scale=0.25, first=0.5)),
    "quantized zero point": lambda: (quantized(), quantized(zero=1)),
    "quantized by channel value": lambda: (quantized_by_channel(), quantized_by_channel(first=2)),
    "quantized by channel scale": lambda: (
        quantized_by_channel(),
        quantized_by_channel(scale=0.75),
    ),
    "quantized by channel zero point": lambda: (
        quantized_by_channel(),
        quantized_by_channel(zero=1),
    ),
    "quantized by another channel": lambda: (quantized_by_channel(), quantized_by_channel(axis=1)),
    "nested value": lambda: (nested((2,), (3,)), nested((2,), (3,), first=1.0)),
    "nested lengths": lambda: (nested((2,), (3,)), nested((3,), (2,))),
    "nested shapes": lambda: (nested((2, 3)), nested((3, 2))),
    "nested count": lambda: (nested((2,), (3,)), nested((2,), (3,), (1,))),
    "mkldnn": lambda: (torch.ones(2).to_mkldnn(), torch.zeros(2).to_mkldnn()),
    "subclass": lambda: (
        TwoTensor(torch.ones(2), torch.ones(2)),
        TwoTensor(torch.ones(2), torch.zeros(2)),
    ),
    "subclass or plain": lambda: (TwoTensor(torch.ones(2), torch.ones(2)), torch.ones(2)),
    "sparse or dense": lambda: (coo(), coo().to_dense()),
    "rows or columns": lambda: (
        compressed(torch.sparse_csr, at=1),
        compressed(torch.sparse_csc, at=1),
    ),
    "transposed or not": lambda: (
        torch.arange(4.0).reshape(2, 2),
        torch.arange(4.0).reshape(2, 2).t(),
    ),
}


@pytest.mark.parametrize("build", CHANGED.values(), ids=CHANGED)
def test_a_change_of_any_layout_is_found(build: Callable[[], tuple[Tensor, Tensor]]) -> None:
    before, after = build()
    assert told(before, replaced_by(after)) is not None


def test_a_jagged_tensors_values_and_lengths_are_compared() -> None:
    text = told(tensor := jagged(), lambda _: tensor.values().add_(1))
    assert text is not None
    assert told(jagged(), replaced_by(jagged(lengths=(3, 2)))) is not None


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x._values().add_(1),
        lambda x: x._indices().add_(1),
        lambda x: x.mul_(2),
    ],
)
def test_a_sparse_tensor_written_in_place_is_found(write: Callable[[Tensor], object]) -> None:
    assert told(coo().coalesce(), lambda holder: write(holder.x)) == "content differs"


def test_a_transposed_tensor_with_the_same_values_is_no_change() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert told(x, replaced_by(x.t().contiguous().t())) is None


DENSE = {
    "0-d": True,
    "transposed": True,
    "conjugated": True,
    "parameter": True,
    "coo": False,
    "csr": False,
    "quantized": False,
    "nested": False,
    "mkldnn": False,
    "subclass": False,
}


@pytest.mark.parametrize("kind", DENSE)
def test_only_a_tensor_that_keeps_its_values_as_they_are_has_them_dense(kind: str) -> None:
    tensor = EXOTIC[kind]()
    found = tensor_bytes.dense_values(tensor)
    assert found is (tensor if DENSE[kind] else None)


@pytest.mark.parametrize("kind", EXOTIC)
def test_values_are_among_the_parts_and_can_be_read(kind: str) -> None:
    tensor = EXOTIC[kind]()
    values = tensor_bytes.values_of(tensor)
    assert 0 < len(values) <= len(tensor_bytes.parts(tensor))
    assert all(tensor_bytes.is_plain(each) for each in values)
    assert tensor_bytes.content_of(tensor)


def test_a_tensor_without_values_is_not_readable_nor_dense() -> None:
    for tensor in (torch.ones(2, device="meta"), nn.UninitializedParameter()):
        assert not tensor_bytes.content_of(tensor)
        assert tensor_bytes.dense_values(tensor) is None
    with pytest.raises(tensor_bytes.UnreadableTensor, match="meta device"):
        tensor_bytes.values_of(torch.ones(2, device="meta"))


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("share", [0, 1, 3])
@pytest.mark.parametrize("view", [Tensor.clone, Tensor.t, lambda tensor: tensor[1:]])
def test_one_tensor_among_others_whose_memory_is_freed_is_seen_before_it_is_read(
    view: Callable[[Tensor], Tensor], share: int, place: int
) -> None:
    tensors = [view(torch.ones(4, 4)) for _ in range(3)]
    assert tensor_bytes.are_backed(tensors)
    assert fit_in_buckets(tensors)
    storage = tensors[place].untyped_storage()
    storage.resize_(storage.nbytes() * share // 4)
    # a failed assertion would read a tensor that is named in it, and end the process
    answers = tensor_bytes.are_backed(tensors), fit_in_buckets(tensors)
    assert answers == (False, False)


@pytest.mark.parametrize("make", [quantized, quantized_by_channel])
def test_a_quantized_tensors_values_are_its_integers_alone(make: Callable[[], Tensor]) -> None:
    tensor = make()
    (values,) = tensor_bytes.values_of(tensor)
    assert torch.equal(values, tensor.int_repr())
    assert len(tensor_bytes.parts(tensor)) > 1
