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
    below: dict[int, bool | None] = {}
    _note_parameters(model, below)
    return {id(layer) for layer in _walk(model, None, below) if not holds_weight_as_buffer(layer)}


def _note_parameters(module: nn.Module, below: dict[int, bool | None]) -> bool | None:
    """Note of a module and those in it whether a parameter in it trains; None if it has none."""
    known = [each.requires_grad for _, each in module._parameters.items() if each is not None]
    for _, child in module._modules.items():
        trains = None if child is None else _note_parameters(child, below)
        if trains is not None:
            known.append(trains)
    below[id(module)] = any(known) if known else None
    return below[id(module)]


def _walk(
    module: nn.Module, around: bool | None, below: dict[int, bool | None]
) -> Iterator[nn.Module]:
    """Yield the layers to train; `around` tells whether the parameters around a module train."""
    own = below[id(module)]
    trains = around if own is None else own
    if is_bn_layer(module) and (module.training if trains is None else trains):
        yield module
    for _, child in module._modules.items():
        if child is not None:
            yield from _walk(child, trains, below)
