"""Keep a whole model's state and put it back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.walk import all_tensors, named_modules
from pytest_bninvariants.snapshot.model_state.plain_state import PlainState
from pytest_bninvariants.snapshot.tensor_bytes import is_plain, is_uninitialised


class ModelState:
    """Keep a model's modules, parameters, buffers, attributes and modes as they are now.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._plain = PlainState(model)
        modules = {id(m): m for m in (*(m for _, m in named_modules(model)), *self._plain.modules)}
        self._modes = [(module, module.training) for module in modules.values()]
        registered = {id(t): t for module in modules.values() for t in all_tensors(module)}
        others = {id(t): t for t in self._plain.tensors if is_plain(t)}
        tensors = [t for t in (others | registered).values() if not is_uninitialised(t)]
        with torch.no_grad():
            self._tensors = [(t, t.detach().clone()) for t in tensors]

    def restore(self) -> None:
        """Put the state back, into the tensors that the model held."""
        for module, training in self._modes:
            module.training = training
        self._plain.restore()
        for tensor, kept in self._tensors:
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                _fill(tensor, kept)


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
