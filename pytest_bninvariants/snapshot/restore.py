"""Keep a whole model's state and put it back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.walk import all_tensors, named_modules
from pytest_bninvariants.snapshot.tensor_bytes import is_uninitialised


class ModelState:
    """Keep a model's modules, parameters, buffers and modes as they are now.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            (module, module.training, [(r, dict(r)) for r in _registries(module)])
            for _, module in named_modules(model)
        ]
        tensors = {id(t): t for t in all_tensors(model) if not is_uninitialised(t)}
        with torch.no_grad():
            self._tensors = [(t, t.detach().clone()) for t in tensors.values()]

    def restore(self) -> None:
        """Put the state back, into the tensors that the model held."""
        for module, training, registries in self._modules:
            module.training = training
            for registry, content in registries:
                registry.clear()
                registry.update(content)
        for tensor, kept in self._tensors:
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                _fill(tensor, kept)


def _registries(module: nn.Module) -> list[dict[str, Any]]:
    """Return the dicts of parameters, buffers and children; a scripted module has fixed ones."""
    if isinstance(module, torch.jit.ScriptModule):
        return []
    return [module._parameters, module._buffers, module._modules]


def _fill(tensor: Tensor, kept: Tensor) -> None:
    """Give a tensor its old content back, if possible in its memory, which its views share."""
    if _fits_in_place(tensor, kept):
        tensor.data.copy_(kept)
    else:
        tensor.data = kept.clone()


def _fits_in_place(tensor: Tensor, kept: Tensor) -> bool:
    """Tell whether a copy fits in a tensor's memory; an expanded tensor has too little."""
    return (
        (tensor.dtype, tensor.device, tensor.shape) == (kept.dtype, kept.device, kept.shape)
        and tensor.layout == kept.layout == torch.strided
        and 0 not in tensor.stride()
    )
