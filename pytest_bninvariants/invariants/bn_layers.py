"""What a BN layer is."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from pytest_bninvariants.invariants import registry

STATISTICS = ("running_mean", "running_var")
BN_STATE = (*STATISTICS, "num_batches_tracked")


def is_bn_layer(module: nn.Module) -> bool:
    """Tell whether a module is a BN layer: by family, by its buffers, or by `bn_layer_types`."""
    buffers = module._buffers
    if buffers:
        if isinstance(module, _InstanceNorm):
            return has_stored_statistics(module)
        if isinstance(module, _NormBase) or (
            "running_mean" in buffers and "running_var" in buffers
        ):
            return True
    return registry.names(type(module))


def has_stored_statistics(module: nn.Module) -> bool:
    """Tell whether a module holds running statistics as buffers."""
    buffers = module._buffers  # a scripted module's has no get()
    return (
        "running_mean" in buffers
        and "running_var" in buffers
        and buffers["running_mean"] is not None
        and buffers["running_var"] is not None
    )
