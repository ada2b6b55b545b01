"""A snapshot shares nothing with the model, and refuses what it cannot keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from pytest_bninvariants import FrozenStateChanged, GateError, frozen, run_config
from pytest_bninvariants.run_config import RunConfig
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.snapshot.arena import aligned_size
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.snapshot.operation_snapshot import OperationSnapshot
from pytest_bninvariants.snapshot.snapshot import take_snapshot
from pytest_bninvariants.snapshot.tensor_bytes import are_backed
from pytest_bninvariants.torch_internals.isolation import undisturbed
from tests.snapshot.holding import Holder, told
from tests.watching import watched


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(2)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: torch.ones(2, device="meta"), "it is on the meta device and has no values"),
        (lambda: nn.Parameter(torch.ones(2, device="meta")), "meta"),
        (lambda: TwoTensor(*[torch.ones(2, device="meta")] * 2), "meta"),
        (fake, "it is fake and has no values"),
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
    with frozen(model, exclude="bad.x") as guard:
        model["good"]()
    assert watched(guard) == (1, 1)


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


@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_small_tensor_that_is_freed_beside_intact_ones_is_not_read(when: str) -> None:
    model = nn.ModuleList([Holder(torch.ones(4)) for _ in range(3)])
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    is_backed = are_backed([torch.ones(4), freed])
    assert not is_backed  # or the process would end below
    if when == "before":
        model[1].x = freed
        with pytest.raises(GateError, match=r"1\.x .*its memory was freed"), frozen(model):
            pass
        return
    with pytest.raises(FrozenStateChanged) as caught, frozen(model):
        _freed(model[1].x)
    (change,) = caught.value.verdict.changes
    assert (change.name, change.text) == (
        "1.x",
        "can no longer be compared: its memory was freed",
    )


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


def test_a_step_that_changes_nothing_has_no_row_made_for_each_tensor() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    with frozen(model):  # which finds out the plan
        model(torch.randn(4, 2))
    guard: Any = frozen(model)
    with guard:
        kept, selection = guard._before.kept, guard._before.selection
        model(torch.randn(4, 2))
    assert watched(guard) == (2, 7)
    mappings = (kept, selection.tensors, selection.names.tensors)
    assert ["_content" in vars(mapping) for mapping in mappings] == [False] * 3
    assert kept["1.running_mean"].watched is selection.tensors["1.running_mean"]
    assert ["_content" in vars(mapping) for mapping in mappings] == [True, True, False]


def kept_of(tensor: Tensor, budget: int | None = None) -> KeptTensor:
    with run_config.activate(RunConfig(snapshot_budget=budget)):
        selection = select(Holder(tensor), Scope())
        (kept,) = take_snapshot(selection.tensors).values()
    return kept


KINDS: dict[str, Callable[[], Tensor]] = {
    "small": lambda: torch.arange(6.0).view(2, 3),
    "large": lambda: torch.arange(9000.0).view(3, 3000),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.5, 0, torch.qint8),
    "sparse": lambda: torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_a_tensor_is_its_spec_and_its_bytes(kind: str) -> None:
    tensor = KINDS[kind]()
    kept = kept_of(tensor)
    assert kept.is_exact
    assert (kept.dtype, kept.shape, kept.device) == (tensor.dtype, tensor.shape, tensor.device)
    assert kept.spec.layout == tensor.layout
    if kind in ("small", "large"):
        assert torch.equal(kept.values, tensor)
        assert kept.value_bytes is not None
        assert torch.equal(kept.value_bytes.view(torch.float32).view(tensor.shape), tensor)
        assert len(kept.content) == 1
    else:
        assert kept.value_bytes is None or kind == "quantized"
        assert sum(piece.numel() for piece in kept.content) > 0


def test_of_a_large_tensor_above_the_budget_no_bytes_are_kept() -> None:
    tensor = KINDS["large"]()
    kept = kept_of(tensor, budget=0)
    assert not kept.is_exact
    assert kept.tensor_copy is None
    assert kept.value_bytes is None
    assert (kept.dtype, kept.shape) == (torch.float32, (3, 3000))
    aligned = aligned_size(tensor.nbytes)
    assert not kept_of(tensor, budget=aligned - 1).is_exact
    assert kept_of(tensor, budget=aligned).is_exact


@pytest.mark.parametrize("budget", [None, 0])
def test_an_operation_is_told_by_the_tensors_that_it_moved(budget: int | None) -> None:
    with run_config.activate(RunConfig(snapshot_budget=budget)), undisturbed():
        for moved in range(len(KINDS)):
            tensors = [make() for make in KINDS.values()]
            snapshot = OperationSnapshot(tensors)
            assert snapshot.moved() == [False] * len(KINDS)
            if list(KINDS)[moved] == "sparse":
                tensors[moved]._values()[1] += 1
            else:
                tensors[moved][1, 2] = 7
            assert snapshot.moved() == [number == moved for number in range(len(KINDS))]
    assert OperationSnapshot([]).moved() == []
