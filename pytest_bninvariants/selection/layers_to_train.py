"""Which BN layers somebody wants to train."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pytest_bninvariants.selection.bn_layers import holds_weight_as_buffer, is_bn_layer


def layers_to_train(model: nn.Module) -> set[int]:
    """Return the ids of the BN layers of which a parameter requires a gradient.

    A layer without parameters goes with the innermost module around it that has some. If there is
    none, the layer's mode decides.
    """
    return {id(layer) for layer in _walk(model, None) if not holds_weight_as_buffer(layer)}


def _walk(module: nn.Module, around: bool | None) -> Iterator[nn.Module]:
    """Yield the layers to train; `around` tells whether the parameters around a module train."""
    parameters = list(module.parameters())
    trains = any(each.requires_grad for each in parameters) if parameters else around
    if is_bn_layer(module) and (module.training if trains is None else trains):
        yield module
    for child in module._modules.values():
        if child is not None:
            yield from _walk(child, trains)
