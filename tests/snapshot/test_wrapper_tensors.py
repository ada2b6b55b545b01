"""Tensors of classes that wrap others: what they compute with is compared, whatever they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from pytest_bninvariants import (
    FrozenStateChanged,
    GateError,
    InvariantHazard,
    frozen,
    frozen_bn,
    trains,
)
from tests.watching import watched


class Scaled(Tensor):
    """Integers with a scale, as quantised weights are kept."""

    @staticmethod
    def __new__(cls, integers: Tensor, scale: object) -> Scaled:
        return torch.Tensor._make_wrapper_subclass(cls, integers.shape, dtype=torch.float32)

    def __init__(self, integers: Tensor, scale: object) -> None:
        self.integers, self.scale = integers, scale

    def __tensor_flatten__(self) -> tuple[list[str], object]:
        return ["integers"], {"scale": self.scale, "signed": True}

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> Scaled:
        return Scaled(inner["integers"], context["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].integers, args[0].scale)
        plain = [a.integers * a.scale if isinstance(a, Scaled) else a for a in args]
        return func(*plain, **(kwargs or {}))


class Quantised(nn.Module):
    def __init__(self, width: int, scale: object = 0.1) -> None:
        super().__init__()
        integers = torch.ones(width, width, dtype=torch.int8)
        self.weight = nn.Parameter(Scaled(integers, scale), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.integers * self.weight.scale)


def _rescale(model: Any) -> None:
    model.weight.scale = 0.7


def _rescale_by_an_integer(model: Any) -> None:
    model.weight.scale = 7


def _rescale_by_a_tensor(model: Any) -> None:
    model.weight.scale = torch.tensor(0.7)


def _write_an_integer(model: Any) -> None:
    model.weight.integers[-1, -1] = 2


def _replace(model: Any) -> None:
    scaled = Scaled(model.weight.integers, 0.2)
    model.weight = nn.Parameter(scaled, requires_grad=False)


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize(
    "change",
    [_rescale, _rescale_by_an_integer, _rescale_by_a_tensor, _write_an_integer, _replace],
)
def test_what_a_wrapper_computes_with_is_compared(width: int, change: Any) -> None:
    model = Quantised(width)
    with pytest.raises(FrozenStateChanged) as caught, frozen(model):
        change(model)
    (told,) = caught.value.verdict.changes
    assert (told.name, told.text) == ("weight", "content differs")


@pytest.mark.parametrize("scale", [0.1, 3, float("nan"), torch.tensor(0.5), None])
def test_a_wrapper_that_is_as_it_was_holds(scale: object) -> None:
    model = Quantised(3, scale)
    with pytest.warns(InvariantHazard, match="equal values"), frozen(model) as guard:
        model.weight = nn.Parameter(Scaled(model.weight.integers, scale), requires_grad=False)
    assert watched(guard) == (1, 1)


@pytest.mark.filterwarnings("ignore:as_strided is not implemented:UserWarning")
def test_a_tensor_that_refuses_to_be_read_is_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked = torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False]))
    model = nn.Module()
    model.register_buffer("masked", masked)
    with pytest.raises(
        GateError, match=r"(?s)cannot compare masked \(MaskedTensor, .*exclude='masked'"
    ):
        frozen(model).start()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """One process that distributes tensors to itself."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def distribute(model: nn.Module, mesh: Any) -> None:
    from torch.distributed._tensor import distribute_module

    distribute_module(model, mesh)  # without a way to partition, it replicates all tensors


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model(torch.randn(8, 3))
    return model.eval()


@torch.no_grad()
def write_nothing(net: nn.Sequential) -> None:
    net[0].weight.mul_(1)


def test_distributed_tensors_that_stay_hold(net: nn.Sequential, mesh: Any) -> None:
    distribute(net, mesh)
    assert type(net[1].running_mean).__name__ == "DTensor"
    with warnings.catch_warnings():
        warnings.simplefilter("error", InvariantHazard)
        with frozen(net) as whole, frozen_bn(net) as bn:
            write_nothing(net)
    assert (watched(whole), watched(bn)) == ((3, 9), (1, 5))


def test_a_distributed_tensor_that_moves_is_told_by_value(net: nn.Sequential, mesh: Any) -> None:
    distribute(net, mesh)
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    with pytest.raises(FrozenStateChanged) as caught, frozen(net), trains(net, "0.weight"):
        optimizer.step()
    verdict = caught.value.verdict
    (change,) = verdict.changes
    assert change.name == "0.weight"
    assert change.text.startswith("12 of 12 values, max |d| 5.0e-01 at ")
    assert [cause.name for cause in verdict.causes] == ["gradient-step"]


def test_statistics_in_distributed_tensors_are_looked_at(net: nn.Sequential, mesh: Any) -> None:
    net[1].running_var[0] = float("inf")
    distribute(net, mesh)
    said = "1: running statistics are not finite"
    with pytest.warns(InvariantHazard, match=said), frozen_bn(net) as guard:
        write_nothing(net)
    assert watched(guard) == (1, 5)


def test_a_model_that_fully_shard_has_sharded_holds_and_breaks(
    net: nn.Sequential, mesh: Any
) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch shards on GPUs alone")
    net[:2].requires_grad_(False)
    fsdp.fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)

    def step(model: nn.Module) -> None:
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()

    with frozen(net, "0", "1", trains="2") as first, frozen_bn(net) as bn:
        step(net)
    assert (watched(first), watched(bn)) == ((2, 7), (1, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InvariantHazard)  # the names hold the gathered tensors
        with torch.no_grad(), frozen(net) as whole:
            net(torch.randn(8, 3))
    assert watched(whole) == (3, 9)
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(net):
        step(net.train())
    assert [cause.name for cause in caught.value.verdict.causes] == ["mode-flip"]
