"""Layers that drawn models are built of, and what each normalises with, told by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.checkpoint import checkpoint

CHANNELS, LENGTH = 3, 2


class CarelessNorm(nn.BatchNorm1d):
    """Normalises with batch statistics in eval, too."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(input, mean, var, self.weight, self.bias, True, 0.1, self.eps)


class NormByHand(nn.Module):
    """A BatchNorm of the user's own, without a call of `batch_norm`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS))
        self.register_buffer("running_mean", torch.zeros(CHANNELS))
        self.register_buffer("running_var", torch.ones(CHANNELS))

    def forward(self, batch: Tensor) -> Tensor:
        batch = batch.float()
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = batch.mean((0, 2)), batch.var((0, 2))
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), 0.1)
                self.running_var.lerp_(var.detach(), 0.1)
        scale = self.weight * (var + 1e-5).rsqrt()
        return (batch - mean[:, None]) * scale[:, None]


class FrozenNorm(nn.Module):
    """As torchvision's FrozenBatchNorm2d: four buffers, and no mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(CHANNELS))
        self.register_buffer("bias", torch.zeros(CHANNELS))
        self.register_buffer("running_mean", torch.full((CHANNELS,), 0.25))
        self.register_buffer("running_var", torch.ones(CHANNELS))

    def forward(self, batch: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return batch * scale[:, None] + (self.bias - self.running_mean * scale)[:, None]


class FusedBlock(nn.Module):
    """A convolution that calls `batch_norm` with the statistics of its BN layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, 1, bias=False)
        self.bn = nn.BatchNorm1d(CHANNELS)

    def forward(self, batch: Tensor) -> Tensor:
        mean, var = self.bn.running_mean, self.bn.running_var
        return F.batch_norm(self.conv(batch), mean, var, training=self.bn.training)


class CheckpointedBlock(nn.Module):
    """A convolution and a BN layer whose activations are computed again in backward."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.inner = nn.Sequential(nn.Conv1d(CHANNELS, CHANNELS, 1), nn.BatchNorm1d(CHANNELS))

    def forward(self, batch: Tensor) -> Tensor:
        return checkpoint(self.inner, batch, use_reentrant=self.use_reentrant)


class CalledTwice(nn.Module):
    """One BN layer for two levels, as in the head of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(CHANNELS)

    def forward(self, batch: Tensor) -> Tensor:
        return self.bn(batch) + self.bn(batch.flip(2) * 2)


class Tables(nn.Module):
    """Buffers of many dtypes and sizes, which no forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.brief = nn.Parameter(torch.randn(2, 3).to(torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("bytes", torch.arange(9, dtype=torch.uint8))
        self.register_buffer("steps", torch.arange(5, dtype=torch.int32), persistent=False)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("phase", torch.tensor([1 + 2j, -1j]))
        self.register_buffer("odd", torch.tensor([float("nan"), -0.0, float("inf")]))
        self.register_buffer("narrow", torch.ones(3, dtype=torch.float16))
        self.register_buffer("none", None)
        self.register_buffer("empty", torch.zeros(0, 2))

    def forward(self, batch: Tensor) -> Tensor:
        return batch


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "bn": lambda: nn.BatchNorm1d(CHANNELS),
    "fast": lambda: nn.BatchNorm1d(CHANNELS, momentum=0.7),
    "cumulative": lambda: nn.BatchNorm1d(CHANNELS, momentum=None),
    "plain": lambda: nn.BatchNorm1d(CHANNELS, affine=False),
    "untracked": lambda: nn.BatchNorm1d(CHANNELS, track_running_stats=False),
    "sync": lambda: nn.SyncBatchNorm(CHANNELS),
    "instance": lambda: nn.InstanceNorm1d(CHANNELS, affine=True, track_running_stats=True),
    "untracked instance": lambda: nn.InstanceNorm1d(CHANNELS),
    "group": lambda: nn.GroupNorm(1, CHANNELS),
    "conv": lambda: nn.Conv1d(CHANNELS, CHANNELS, 1),
    "dropout": lambda: nn.Dropout(0.3),
    "relu": nn.ReLU,
    "careless": lambda: CarelessNorm(CHANNELS),
    "by hand": NormByHand,
    "frozen": FrozenNorm,
    "fused": FusedBlock,
    "checkpointed": lambda: CheckpointedBlock(use_reentrant=False),
    "reentrant": lambda: CheckpointedBlock(use_reentrant=True),
    "twice": CalledTwice,
}


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a BN layer, as the docs define it."""
    if isinstance(module, _InstanceNorm):
        return module.running_mean is not None
    return isinstance(module, _BatchNorm | NormByHand | FrozenNorm)


def normalises(module: nn.Module, batch: Tensor) -> list[tuple[nn.Module, bool]]:
    """Return the BN layers that a call of a module itself uses, and if with batch statistics."""
    return [(layer, used) for layer, used in _uses(module) if not (used and _raises(layer, batch))]


def _raises(layer: nn.Module, batch: Tensor) -> bool:
    """Tell whether torch refuses to normalise a batch of one value for each statistic."""
    values = batch.shape[2:].numel()
    if not isinstance(layer, _InstanceNorm):
        values *= batch.shape[0]
    return values == 1 and not isinstance(layer, NormByHand)


def _uses(module: nn.Module) -> list[tuple[nn.Module, bool]]:
    if isinstance(module, FusedBlock):
        return [(module.bn, module.bn.training or module.bn.running_mean is None)]
    if not is_norm(module):
        return []
    if isinstance(module, CarelessNorm):
        return [(module, True)]
    if isinstance(module, FrozenNorm):
        return [(module, False)]
    if isinstance(module, _InstanceNorm):
        return [(module, module.training or not module.track_running_stats)]
    if isinstance(module, NormByHand):
        return [(module, module.training)]
    assert isinstance(module, _BatchNorm)
    return [(module, module.training or (module.running_mean is None))]


def batch_of(module: nn.Module, batch: Tensor) -> Tensor:
    """Return what the BN layer that a module uses normalises."""
    batch = batch.detach()
    if isinstance(module, FusedBlock):
        return F.conv1d(batch, module.conv.weight.detach())
    return batch.clone()
