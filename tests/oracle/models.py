"""Small models, drawn as plain data, so that two equal ones can be built."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.oracle.layers import BLOCKS, CHANNELS, Tables, is_norm

WRAPPERS = ("none", "none", "none", "data parallel", "own")
TIES = ("none", "none", "weights", "module", "statistics")


class DrawnNet(nn.Module):
    """A stem, drawn blocks, a head, and tables that only writes touch."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(CHANNELS, 2)
        self.tables = Tables()

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(batch)).mean(-1))


class OwnWrapper(nn.Module):
    """A wrapper as a user writes one; its name for the model is the one that DDP has."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Tensor) -> Tensor:
        return self.module(batch)


@dataclass(frozen=True)
class ModelSpec:
    """What a model is built of.

    Args:
        blocks: the names of its blocks.
        wrapper: what is around it.
        tie: what two of its parts share.
        frozen: how often of four a module's parameters are frozen, and the module in eval.
        warm: whether statistics are not the initial ones.
        seed: of everything else that is random.
    """

    blocks: tuple[str, ...]
    wrapper: str
    tie: str
    frozen: int
    warm: bool
    seed: int

    def build(self) -> nn.Module:
        """Return a new model; equal specs give equal models."""
        torch.manual_seed(self.seed)
        pick = random.Random(self.seed)
        net = DrawnNet([BLOCKS[name]() for name in self.blocks])
        self._tie(net)
        for module in net.modules():
            module.training = pick.random() < 0.5
            if pick.randrange(4) < self.frozen:
                module.eval()
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
            if self.warm and is_norm(module) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        if self.wrapper == "data parallel":
            return nn.DataParallel(net)
        return OwnWrapper(net) if self.wrapper == "own" else net

    def _tie(self, net: DrawnNet) -> None:
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm1d)]
        if self.tie == "weights":
            net.blocks.append(nn.Conv1d(CHANNELS, CHANNELS, 1))
            net.blocks[-1].weight = net.stem.weight
        elif self.tie == "module" and norms:
            net.blocks.append(norms[0])
        tracking = [norm for norm in norms if norm.running_mean is not None]
        if self.tie == "statistics" and len(tracking) > 1:
            tracking[1].running_mean = tracking[0].running_mean


def model_specs() -> st.SearchStrategy[ModelSpec]:
    """Draw models, with one BatchNorm at least most of the time."""
    return st.builds(
        ModelSpec,
        blocks=st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=3).map(tuple),
        wrapper=st.sampled_from(WRAPPERS),
        tie=st.sampled_from(TIES),
        frozen=st.integers(0, 4),
        warm=st.booleans(),
        seed=st.integers(0, 100),
    )
