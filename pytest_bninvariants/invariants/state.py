"""A whole model's state, to put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bninvariants.invariants.selection import own_tensors


class ModelState:
    """Keep a model's parameters, buffers and modes as they are now.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._tensors: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor | None]] = []
        with torch.no_grad():
            for module in model.modules():
                for kind, name, tensor in own_tensors(module):
                    registry = module._parameters if kind == "parameter" else module._buffers
                    kept = None if is_lazy(tensor) else tensor.detach().clone()
                    self._tensors.append((registry, name, tensor, kept))  # type: ignore[arg-type]

    def restore(self) -> None:
        """Put it back, into the very tensors that the model held."""
        for module, training in self._modes:
            module.training = training
        for registry, name, tensor, kept in self._tensors:
            registry[name] = tensor
            if kept is not None:
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    _fill(tensor, kept)


def _fill(tensor: Tensor, kept: Tensor) -> None:
    """Give a tensor its old content back, where possible in the memory that views of it share."""
    fits = (
        (tensor.dtype, tensor.device, tensor.shape) == (kept.dtype, kept.device, kept.shape)
        and tensor.layout == kept.layout == torch.strided
        and 0 not in tensor.stride()
    )
    if fits:
        tensor.data.copy_(kept)
    else:
        tensor.data = kept.clone()
