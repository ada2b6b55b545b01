"""Keep a whole model's state and put it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pytest_bninvariants.selection.walk import named_modules, stored_tensors
from pytest_bninvariants.snapshot.budget import allows
from pytest_bninvariants.snapshot.model_state.plain_state import PlainState
from pytest_bninvariants.snapshot.tensor_bytes import (
    OUT_OF_MEMORY,
    are_backed,
    is_plain,
    is_uninitialised,
)
from pytest_bninvariants.torch_internals.sharding import gathered_modules


class ModelState:
    """Keep a model's modules, parameters, buffers, attributes and modes as they are now.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._plain = PlainState(model)
        named = (module for _, module in named_modules(model))
        self._modules = list({id(m): m for m in (*named, *self._plain.modules)}.values())
        self._modes = [(module, module.training) for module in self._modules]
        self._gathered = set(map(id, gathered_modules(self._modules)))
        registered = {id(t): t for _, t in stored_tensors(self._modules)}
        others = {id(t): t for t in self._plain.tensors if is_plain(t) and are_backed([t])}
        tensors = [t for t in (others | registered).values() if not is_uninitialised(t)]
        with torch.no_grad():
            self._tensors = [*zip(tensors, _copies(tensors), strict=True)]

    def restore(self) -> None:
        """Put the state back, into the tensors that the model held."""
        for module, training in self._modes:
            module.training = training
        for module in gathered_modules(self._modules):
            if id(module) not in self._gathered:
                module.reshard()
        self._plain.restore()
        for tensor, kept in self._tensors:
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                _fill(tensor, kept)


class _Copy(NamedTuple):
    """A copy of a tensor, and the device that the tensor was on."""

    values: Tensor
    device: torch.device


def _copies(tensors: Sequence[Tensor]) -> Iterator[_Copy]:
    """Yield copies of tensors, on the host for a device whose budget has no room for them."""
    sizes: Counter[torch.device] = Counter()
    for tensor in tensors:
        sizes[tensor.device] += tensor.nbytes if is_plain(tensor) else 0
    full = {device for device, size in sizes.items() if not allows(size, device)}
    for tensor in tensors:
        yield _Copy(_copy(tensor, to_host=tensor.device in full), tensor.device)


def _copy(tensor: Tensor, *, to_host: bool) -> Tensor:
    if tensor.device.type == "cpu" or not is_plain(tensor):
        return tensor.detach().clone()
    if not to_host:
        with suppress(OUT_OF_MEMORY):
            return tensor.detach().clone()
    return tensor.detach().cpu()


def _fill(tensor: Tensor, kept: _Copy) -> None:
    """Give a tensor its old content back, if possible in its memory, which its views share."""
    if _fits_in_place(tensor, kept):
        tensor.data.copy_(kept.values)
    else:
        tensor.data = kept.values.to(kept.device, copy=True)


def _fits_in_place(tensor: Tensor, copy: _Copy) -> bool:
    """Tell whether a copy fits in a tensor's memory; an expanded tensor has too little."""
    kept = copy.values
    return (
        (tensor.dtype, tensor.device, tensor.shape) == (kept.dtype, copy.device, kept.shape)
        and tensor.layout == kept.layout == torch.strided
        and 0 not in tensor.stride()
    )
