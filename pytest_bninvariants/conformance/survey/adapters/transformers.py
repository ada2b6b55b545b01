"""Layers of transformers that are made from a configuration."""

from __future__ import annotations

from torch import Tensor
from transformers import PatchTSTConfig
from transformers.models.patchtst.modeling_patchtst import PatchTSTBatchNorm


class ChannelsFirst(PatchTSTBatchNorm):
    """A PatchTSTBatchNorm that takes the channels in axis 1 instead of the last."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(PatchTSTConfig(d_model=channels, norm_eps=eps))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)
