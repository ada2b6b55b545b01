"""Which modules are BN layers, and what they normalise with: stored or batch statistics."""

from __future__ import annotations

from torch import nn

from pytest_bninvariants.selection import bn_layer_types
from pytest_bninvariants.torch_internals.private_api import InstanceNorm, NormBase
from pytest_bninvariants.torch_internals.scripted import is_scripted_norm

STATISTICS = ("running_mean", "running_var")
BN_STATE = (*STATISTICS, "num_batches_tracked")
_TORCH_FORWARDS = {nn.BatchNorm1d.forward, nn.SyncBatchNorm.forward, nn.InstanceNorm1d.forward}


def has_known_forward(layer: nn.Module) -> bool:
    """Tell whether a layer's forward is torch's own, so that its flags determine what it does."""
    return (
        isinstance(layer, NormBase)
        and type(layer).forward in _TORCH_FORWARDS
        and "forward" not in vars(layer)
    )


def counts_batches(layer: nn.Module) -> bool:
    """Tell whether a layer counts each batch that it normalises in training mode."""
    if isinstance(layer, InstanceNorm) or not getattr(layer, "track_running_stats", True):
        return False
    return getattr(layer, "num_batches_tracked", None) is not None


def uses_batch_statistics(layer: nn.Module) -> bool:
    """Tell whether a layer with a known forward uses batch statistics, as its flags are now.

    Source: the forwards in `torch/nn/modules/batchnorm.py` and `instancenorm.py`.
    """
    if isinstance(layer, InstanceNorm):
        return layer.training or not layer.track_running_stats
    return layer.training or not has_stored_statistics(layer)


def holds_weight_as_buffer(layer: nn.Module) -> bool:
    """Tell whether a layer can never train its weight, as FrozenBatchNorm2d cannot."""
    return "weight" in layer._buffers


def is_compiled(module: nn.Module) -> bool:
    """Tell whether torch.compile returned a module, or compiled it in place."""
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def is_bn_layer(module: nn.Module) -> bool:
    """Tell whether a module is a BN layer: by family, by its buffers, or by `bn_layer_types`."""
    buffers = module._buffers
    if buffers:
        if isinstance(module, InstanceNorm):
            return has_stored_statistics(module)
        if isinstance(module, NormBase) or ("running_mean" in buffers and "running_var" in buffers):
            return True
    return bn_layer_types.includes(type(module)) or is_scripted_norm(module)


def has_stored_statistics(module: nn.Module) -> bool:
    """Tell whether a module holds running statistics as buffers."""
    buffers = module._buffers  # those of a scripted module have no get()
    return (
        "running_mean" in buffers
        and "running_var" in buffers
        and buffers["running_mean"] is not None
        and buffers["running_var"] is not None
    )
