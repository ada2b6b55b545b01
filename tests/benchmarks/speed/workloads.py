"""Models of five shapes, by which what a guard costs is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet50

from pytest_bninvariants import frozen, frozen_bn
from pytest_bninvariants.invariants.guard import Guard


class Workload(nn.Module):
    """A body that is watched and does not run, and one small layer that does.

    Args:
        body: the body.
        layer: the layer.
        guard: the guard around it.
    """

    def __init__(self, body: nn.Module, layer: nn.Module, guard: Callable[..., Guard]) -> None:
        super().__init__()
        self.body, self.layer = body, layer
        self.guard, self._batch = guard, torch.randn(4, 2)
        of_bn = {n for n, module in self.named_modules() if isinstance(module, _BatchNorm)}
        self._keys = [
            key
            for key in self.state_dict()
            if guard is not frozen_bn or key.rpartition(".")[0] in of_bn
        ]
        self.eval()

    def step(self) -> None:
        """Run the layer."""
        self.layer(self._batch.to(self.layer.weight.device))

    def by_guard(self) -> None:
        """Guard a step."""
        with self.guard(self):
            self.step()

    def by_hand(self) -> None:
        """Do what people write: a deep copy, and `torch.equal` in a loop."""
        state = self.state_dict()
        before = copy.deepcopy({key: state[key] for key in self._keys})
        self.step()
        now = self.state_dict()
        assert all(torch.equal(before[key], now[key]) for key in self._keys)

    def bound(self) -> None:
        """Do what nobody can do without: copy the bytes once, and compare them once."""
        state = self.state_dict()
        for key in self._keys:
            torch.equal(state[key].clone(), state[key])

    @property
    def size(self) -> int:
        """Return how many bytes are watched."""
        state = self.state_dict()
        return sum(state[key].nbytes for key in self._keys)

    @property
    def count(self) -> int:
        """Return how many tensors are watched."""
        return len(self._keys)


def _resnet50() -> nn.Module:
    body = resnet50()
    body(torch.randn(2, 3, 32, 32))  # statistics of some data, as what is worth freezing has them
    return body


def _linears(count: int, width: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.ModuleList(nn.Linear(width, width, dtype=dtype) for _ in range(count))


def _many() -> nn.Module:
    def some() -> nn.Module:
        return nn.ParameterList(torch.randn(64) for _ in range(100))

    return nn.ModuleList(some() for _ in range(100))


@dataclass(frozen=True, kw_only=True)
class Maker:
    """How a workload is made, and what it stands for."""

    what: str
    body: Callable[[], nn.Module]
    layer: Callable[[], nn.Module] = lambda: nn.Linear(2, 2)
    guard: Callable[..., Guard] = frozen

    def __call__(self) -> Workload:
        """Make it."""
        return Workload(self.body(), self.layer(), self.guard)


WORKLOADS = {
    "W1": Maker(
        what="the BN layers of a resnet50",
        body=_resnet50,
        layer=lambda: nn.BatchNorm1d(2),
        guard=frozen_bn,
    ),
    "W2": Maker(what="a resnet50", body=_resnet50),
    "W3": Maker(what="196 linear layers", body=lambda: _linears(196, 1750)),
    "W4": Maker(what="10,000 parameters of 64 floats", body=_many),
    "W5": Maker(what="linear layers in bfloat16", body=lambda: _linears(32, 4000, torch.bfloat16)),
}


def small() -> Workload:
    """Return a workload to try a measurement on."""
    return Workload(_linears(3, 80), nn.Linear(2, 2), frozen)
