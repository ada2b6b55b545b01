"""Every change of a watched tensor is found, whoever wrote it, and nothing else is a change."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen
from pytest_bninvariants.selection.tensor_table import WatchedTensor
from pytest_bninvariants.snapshot.changes import is_unchanged
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.torch_internals.isolation import undisturbed
from tests.snapshot.holding import Holder, quantized, replaced_by, told
from tests.watching import watched


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


def test_a_lazy_parameter_that_is_never_initialised_is_no_change() -> None:
    model = nn.ModuleDict({"lazy": nn.LazyLinear(3), "ran": nn.Linear(1, 1)})
    with frozen(model) as guard:
        model["ran"](torch.ones(1, 1))
    assert watched(guard) == (2, 4)


def test_a_lazy_parameter_that_a_step_initialises_is_a_change_of_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(FrozenStateChanged) as caught, frozen(model):
        model(torch.ones(1, 2))
    texts = {change.name: change.text for change in caught.value.verdict.changes}
    assert texts["0.weight"] == "uninitialised -> float32 (3, 2)"


def test_lazy_batch_norms_that_are_never_initialised_can_be_watched() -> None:
    model = nn.ModuleDict({"lazy": nn.LazyBatchNorm1d(), "ran": nn.Linear(1, 1)})
    with frozen(model) as guard:
        model["ran"](torch.ones(1, 1))
    assert watched(guard) == (2, 7)


def test_a_change_remembers_whether_the_same_object_holds_the_name() -> None:
    def verdict(write: Callable[[Holder], object]) -> Verdict:
        holder = Holder(torch.zeros(2))
        with pytest.raises(FrozenStateChanged) as caught, frozen(holder):
            write(holder)
        return caught.value.verdict

    assert verdict(lambda holder: holder.x.add_(1)).changes[0].same_object
    assert not verdict(replaced_by(torch.ones(2))).changes[0].same_object
    assert not verdict(lambda holder: delattr(holder, "x")).changes[0].same_object
    (new,) = verdict(lambda holder: holder.register_buffer("y", holder.x)).changes
    assert not new.same_object


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_users_default_device_does_not_blind_the_guard(device: str) -> None:
    x = torch.zeros(2, 3)
    with torch.device(device):
        text = told(x, lambda holder: holder.x[1].add_(torch.ones(3, device="cpu")))
    assert text == "3 of 6 values, max |d| 1.0e+00 at [1, 0]: 0.0 -> 1.0"
    q = quantized()
    with torch.device(device):
        assert told(q, lambda _: None) is None


SYMMETRIC = torch.tensor([[1.0, 2.0], [2.0, 0.0]])
"""Its rows and columns have the same bytes, compressed or not."""


@pytest.mark.parametrize(
    ("one", "other", "unchanged"),
    [
        (torch.zeros(4), torch.zeros(4), True),
        (torch.zeros(4), torch.zeros(2, 2), False),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32), False),
        (torch.zeros(4), -torch.zeros(4), False),
        (SYMMETRIC.to_sparse_csr(), SYMMETRIC.to_sparse_csr(), True),
        (SYMMETRIC.to_sparse_csr(), SYMMETRIC.to_sparse_csc(), False),
    ],
)
def test_a_tensor_is_unchanged_in_its_bytes_dtype_shape_and_layout(
    one: Tensor, other: Tensor, unchanged: bool
) -> None:
    with undisturbed():
        kept = take_snapshot({"x": WatchedTensor("x", "", "buffer", one)})["x"]
        assert is_unchanged(kept, other) == unchanged
