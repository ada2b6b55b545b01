"""What in_sync says on each rank of a run, of models that differ between ranks and of others."""

from __future__ import annotations

import time

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pytest_bninvariants import in_sync
from pytest_bninvariants.invariants.conclude import conclude
from pytest_bninvariants.invariants.in_sync.guard import sync_guard
from tests.ranks.checks import Checks

checks = Checks()
rank = checks.rank


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def check(name: str, net: nn.Module, *names: str, **options: object) -> None:
    checks.run(name, lambda: in_sync(net, None, *names, **options))  # type: ignore[call-overload]


check("built", model(), parameters=True)
check("other seeds", model(rank), parameters=True)
check("wrapped", DistributedDataParallel(model(rank)), parameters=True)

net = model()
net(torch.randn(8, 3, generator=torch.Generator().manual_seed(rank)))
check("own statistics", net)
for buffer in net.buffers():
    distributed.broadcast(buffer, 0)
check("own statistics, mended", net)

net = model()
for number in range(1 + rank):
    net(torch.full((4, 3), float(number)))
check("uneven", net)

net = model()
if rank == 1:
    net(torch.randn(4, 3))
check("loaded on one", net)

net = model()
net(torch.ones(4, 3))
if rank == 1:
    net[1].running_mean.fill_(7.0)
check("written on one", net)

net = model()
net(torch.ones(4, 3))
net[0].weight.data.add_(rank)
check("stepped apart", net, parameters=True)

smaller = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False))
check("other names", smaller if rank == 0 else model(), parameters=True)
check("other dtypes", model().double() if rank == 1 else model(), parameters=True)

began = time.monotonic()
check("no buffers on one", nn.BatchNorm1d(3) if rank == 0 else nn.Linear(3, 3))
check("no buffers", nn.Linear(3, 3))
check("a name on one", model() if rank == 0 else nn.Sequential(nn.BatchNorm1d(3)), "1")
check("meta on one", nn.BatchNorm1d(3, device="meta" if rank == 1 else "cpu"))
checks.told["no buffers on one"]["seconds"] = time.monotonic() - began


class Unreadable(nn.BatchNorm1d):
    """A model whose buffers cannot be told apart from what raises."""

    @property
    def _buffers(self) -> dict[str, torch.Tensor]:
        raise OSError("the disk is gone")

    @_buffers.setter
    def _buffers(self, value: object) -> None: ...


class Holder(nn.Module):
    """A module that a check may break after it was built."""


def raising() -> nn.Module:
    holder = Holder()
    holder.norm = nn.BatchNorm1d(3)
    if rank == 1:
        holder.norm.__class__ = Unreadable
    return holder


check("an exception on one", raising())

check("no group", model(), group=3)
pair = distributed.new_group([0, 1])
net = model()
net[1].running_mean.fill_(float(rank == checks.size - 1))
check("a group", net, group=pair)


def raise_in_a_step_on_one() -> None:
    """End the step as the pytest layer does, which asks no guard for a verdict if it raised."""
    guard = sync_guard(model())
    guard.start()
    conclude([guard], RuntimeError("no data left") if rank == 1 else None)


checks.run("a step that raises on one", raise_in_a_step_on_one)
checks.end()
