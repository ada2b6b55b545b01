"""Layers of torch_geometric."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import HeteroBatchNorm

_STATE = ("weight", "bias", "running_mean", "running_var")
_READ = (  # what its forward reads beside
    *("training", "track_running_stats", "num_batches_tracked"),
    *("momentum", "eps", "affine", "mean_var", "num_types"),
)


class OneTypeBatchNorm(HeteroBatchNorm):
    """A HeteroBatchNorm of one type; its state has one axis, and not one more for the types."""

    def __init__(self, channels: int, *settings: Any, **named: Any) -> None:
        super().__init__(channels, 1, *settings, **named)
        for name in _STATE:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, _first_row(value))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch, all of whose samples are of one type."""
        state = {name: getattr(self, name) for name in _STATE}
        rows = {name: None if value is None else value[None] for name, value in state.items()}
        settings = {name: getattr(self, name) for name in _READ}
        types = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return HeteroBatchNorm.forward(SimpleNamespace(**rows, **settings), x, types)


def _first_row(value: Tensor) -> Tensor:
    row = value.detach()[0].clone()
    return nn.Parameter(row) if isinstance(value, nn.Parameter) else row
