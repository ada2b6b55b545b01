"""Every change of a watched tensor is found, by its bytes, and nothing else is called a change."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings, strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from pytest_bninvariants import FrozenStateChanged, GateError, Verdict, frozen
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.snapshot import tensor_bytes
from pytest_bninvariants.snapshot.changes import changes_since
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.snapshot.value_difference import arrow


class Holder(nn.Module):
    """Hold one tensor as a buffer; running it does nothing, but is something that ran."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", tensor)

    def forward(self) -> None:
        pass


def told(tensor: Tensor, write: Callable[[Holder], object]) -> str | None:
    """Return how a guard puts what happens to a tensor; None where it finds that nothing did."""
    holder = Holder(tensor)
    guard = frozen(holder)
    try:
        with guard:
            holder()
            write(holder)
    except FrozenStateChanged as failure:
        (change,) = failure.verdict.changes
        assert change.name == "x"
        return change.text
    assert guard.verdict is not None
    assert guard.verdict.holds
    return None


def replaced_by(new: Tensor) -> Callable[[Holder], object]:
    def write(holder: Holder) -> None:
        holder._buffers["x"] = new

    return write


def of_bytes(raw: Tensor, dtype: torch.dtype) -> Tensor:
    return raw.view(dtype)


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


def quantized(scale: float = 0.5, zero: int = 0, first: float = 1.0) -> Tensor:
    return torch.quantize_per_tensor(torch.tensor([first, 2.0]), scale, zero, torch.qint8)


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


def _by_thread(x: Tensor) -> None:
    thread = threading.Thread(target=lambda: x.view(-1).data.add_(1))
    thread.start()
    thread.join()


def _by_address(x: Tensor) -> None:
    ctypes.c_float.from_address(x.data_ptr()).value = 1.0


def _in_inference_mode(x: Tensor) -> None:
    with torch.inference_mode():
        x.add_(1)


WRITERS: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda x: x.add_(1),
    "index": lambda x: x.__setitem__(1, 1.0),
    "data": lambda x: x.data.mul_(2).add_(1),
    "data replaced": lambda x: setattr(x, "data", torch.ones_like(x)),
    "detached": lambda x: x.detach().fill_(1),
    "numpy": lambda x: x.detach().numpy().__setitem__(2, 1),
    "dlpack": lambda x: torch.from_dlpack(x.detach()).fill_(1),
    "set_": lambda x: x.set_(torch.ones_like(x)),
    "view": lambda x: x.view(-1)[-1:].add_(1),
    "storage": lambda x: x.untyped_storage().fill_(1),
    "memory": _by_address,
    "thread": _by_thread,
    "inference mode": _in_inference_mode,
    "copy": lambda x: x.copy_(torch.ones_like(x)),
    "foreach": lambda x: torch._foreach_add_([x], 1.0),
    "out": lambda x: torch.add(torch.ones(5), 1.0, out=x),
    "batch norm": lambda x: nn.functional.batch_norm(
        torch.randn(4, 5), x, torch.ones(5), training=True
    ),
    "random": lambda x: nn.init.normal_(x),
    "resize": lambda x: x.resize_(6),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_write_is_found_whoever_wrote(write: Callable[[Tensor], object]) -> None:
    with torch.no_grad():
        assert told(torch.zeros(5), lambda holder: write(holder.x)) is not None


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "loop": lambda p: torch.optim.SGD(p, lr=1.0, foreach=False),
    "foreach": lambda p: torch.optim.SGD(p, lr=1.0, foreach=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, foreach=True),
    "fused": lambda p: torch.optim.SGD(p, lr=1.0, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1.0, foreach=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=1.0, fused=True),
    "sparse adam": lambda p: torch.optim.Adagrad(p, lr=1.0),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizers_step_is_found(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    model = nn.Linear(3, 2)
    optimizer = make(list(model.parameters()))

    def step() -> None:
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()

    with pytest.raises(FrozenStateChanged) as caught, frozen(model):
        step()
    assert caught.value.verdict.changed_tensors == ("weight", "bias")


def test_a_write_that_is_taken_back_is_no_change() -> None:
    assert told(torch.ones(3), lambda holder: holder.x.mul_(4).mul_(0.25)) is None


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


def test_a_buffer_that_is_gone_is_told() -> None:
    assert told(torch.zeros(2), lambda holder: delattr(holder, "x")) == "gone"
    assert told(torch.zeros(2), lambda holder: setattr(holder, "x", None)) == "gone"


@pytest.mark.parametrize(
    ("add", "name", "text"),
    [
        (lambda m: m.register_buffer("y", torch.zeros(2)), "y", "new: buffer, float32 (2,)"),
        (
            lambda m: m.register_parameter("y", nn.Parameter(torch.zeros(2, 1).half())),
            "y",
            "new: Parameter, float16 (2, 1)",
        ),
        (lambda m: m.add_module("sub", Holder(torch.tensor(1))), "sub.x", "new: buffer, int64 ()"),
    ],
)
def test_a_tensor_that_is_new_is_told(
    add: Callable[[nn.Module], object], name: str, text: str
) -> None:
    holder = Holder(torch.zeros(1))
    with pytest.raises(FrozenStateChanged) as caught, frozen(holder):
        add(holder)
    (change,) = caught.value.verdict.changes
    assert (change.name, change.kind, change.text) == (name, "new", text)


@pytest.mark.parametrize("bits", [0x7FC00001, 0xFFC00000, 0x7F800001])
def test_another_nan_is_a_change(bits: int) -> None:
    nan = torch.tensor([bits - (bits >> 31 << 32)], dtype=torch.int32).view(torch.float32)
    assert told(torch.tensor([math.nan]), replaced_by(nan)) is not None


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


def test_a_lazy_parameter_that_is_never_initialised_is_no_change() -> None:
    model = nn.ModuleDict({"lazy": nn.LazyLinear(3), "ran": nn.Linear(1, 1)})
    with frozen(model):
        model["ran"](torch.ones(1, 1))


def test_a_lazy_parameter_that_a_step_initialises_is_a_change_of_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(FrozenStateChanged) as caught, frozen(model):
        model(torch.ones(1, 2))
    texts = {change.name: change.text for change in caught.value.verdict.changes}
    assert texts["0.weight"] == "uninitialised -> float32 (3, 2)"


def test_lazy_batch_norms_that_are_never_initialised_can_be_watched() -> None:
    model = nn.ModuleDict({"lazy": nn.LazyBatchNorm1d(), "ran": nn.Linear(1, 1)})
    with frozen(model):
        model["ran"](torch.ones(1, 1))


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(2)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: torch.ones(2, device="meta"), "it is on the meta device and has no values"),
        (lambda: nn.Parameter(torch.ones(2, device="meta")), "meta"),
        (lambda: TwoTensor(*[torch.ones(2, device="meta")] * 2), "meta"),
        (fake, "has no values"),
    ],
    ids=["meta", "parameter", "subclass", "fake"],
)
def test_a_tensor_without_values_is_a_gate_error_that_names_it(
    build: Callable[[], Tensor], reason: str
) -> None:
    model = nn.ModuleDict({"good": Holder(torch.ones(1)), "bad": Holder(build())})
    with pytest.raises(GateError) as caught, frozen(model):
        raise AssertionError("the guard must not be entered")
    message = str(caught.value)
    assert message.startswith("cannot compare bad.x (")
    assert reason in message
    assert message.endswith("leave it out with exclude='bad.x'")
    with frozen(model, exclude="bad.x"):
        model["good"]()


def test_a_fake_tensor_is_not_said_to_be_on_the_wrong_device() -> None:
    with pytest.raises(GateError) as caught, frozen(Holder(fake())):
        pass
    assert "it is on the cpu device and has no values" not in str(caught.value)


def test_a_tensor_that_loses_its_values_is_a_violation() -> None:
    text = told(torch.ones(2), lambda holder: holder.to("meta"))
    assert text is not None
    assert "can no longer be compared" in text


def _freed(tensor: Tensor, share: int = 0) -> Tensor:
    storage = tensor.untyped_storage()
    storage.resize_(storage.nbytes() * share // 4)
    return tensor


@pytest.mark.parametrize("share", [0, 1, 3])
@pytest.mark.parametrize("count", [8, 2**16])
def test_a_tensor_whose_memory_is_freed_is_not_read(count: int, share: int) -> None:
    for build in (lambda: torch.ones(count), lambda: torch.ones(count // 8, 8).t()):
        text = told(build(), lambda holder: _freed(holder.x, share))
        assert text == "can no longer be compared: its memory was freed"
        with (
            pytest.raises(GateError, match="its memory was freed"),
            frozen(Holder(_freed(build()))),
        ):
            pass


def test_the_snapshot_copies_a_tied_tensor_once() -> None:
    model = nn.Module()
    model.first, model.second = nn.Linear(2, 2), nn.Linear(2, 2)
    model.second.weight = model.first.weight
    kept = take_snapshot(select(model, Scope()).tensors)
    assert address_of(kept["first.weight"]) == address_of(kept["second.weight"])
    assert address_of(kept["first.bias"]) != address_of(kept["second.bias"])


def address_of(kept: KeptTensor) -> int:
    assert kept.tensor_copy is not None
    (tensor_bytes,) = kept.tensor_copy.content
    return tensor_bytes.data_ptr()


def test_a_snapshot_shares_no_memory_with_the_model() -> None:
    model = nn.Linear(3, 3)
    kept = take_snapshot(select(model, Scope()).tensors)
    for name, parameter in model.named_parameters():
        assert address_of(kept[name]) != parameter.data_ptr()


def test_a_change_remembers_whether_the_same_object_holds_the_name() -> None:
    def verdict(write: Callable[[Holder], object]) -> Verdict:
        holder = Holder(torch.zeros(2))
        with pytest.raises(FrozenStateChanged) as caught, frozen(holder):
            write(holder)
        return caught.value.verdict

    assert verdict(lambda holder: holder.x.add_(1)).changes[0].same_object
    assert not verdict(replaced_by(torch.ones(2))).changes[0].same_object


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_users_default_device_does_not_blind_the_guard(device: str) -> None:
    x = torch.zeros(2, 3)
    with torch.device(device):
        text = told(x, lambda holder: holder.x[1].add_(torch.ones(3, device="cpu")))
    assert text == "3 of 6 values, max |d| 1.0e+00 at [1, 0]: 0.0 -> 1.0"
    q = quantized()
    with torch.device(device):
        assert told(q, lambda _: None) is None


def test_a_users_default_dtype_does_not_change_the_text() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        text = told(torch.zeros(2, dtype=torch.float32), lambda holder: holder.x.add_(1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert text == "2 of 2 values, max |d| 1.0e+00 at [0]: 0.0 -> 1.0"


def test_a_step_that_changes_nothing_has_no_row_made_for_each_tensor() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    with frozen(model):  # which finds out the plan
        model(torch.randn(4, 2))
    guard: Any = frozen(model)
    with guard:
        kept, selection = guard._before.kept, guard._before.selection
        model(torch.randn(4, 2))
    mappings = (kept, selection.tensors, selection.names.tensors)
    assert ["_made" in vars(mapping) for mapping in mappings] == [False] * 3
    assert kept["1.running_mean"].watched is selection.tensors["1.running_mean"]
    assert ["_made" in vars(mapping) for mapping in mappings] == [True, True, False]
