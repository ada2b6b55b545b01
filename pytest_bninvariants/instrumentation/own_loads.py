"""Find loads of a state_dict that holds the module's own tensors: such a load restores nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from types import FrameType
from typing import Any, NamedTuple

from torch import Tensor, nn

from pytest_bninvariants.frames import place_of
from pytest_bninvariants.selection.walk import join, named_modules, own_tensors
from pytest_bninvariants.snapshot.addresses import share_memory
from pytest_bninvariants.snapshot.tensor_bytes import Content, content_of, same_content
from pytest_bninvariants.torch_internals.isolation import undisturbed
from pytest_bninvariants.verdict import Place


class _OwnLoad(NamedTuple):
    """A load of a tensor from itself.

    Args:
        place: the line that loaded.
        content: the tensor's bytes then.
    """

    place: Place | None
    content: Content | None


class OwnLoads:
    """Note where tensors are loaded from themselves, as from a state_dict kept by reference.

    Args:
        tensors: the tensors to follow.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = tensors
        self._loads: dict[int, _OwnLoad] = {}

    @cached_property
    def _followed(self) -> dict[int, Tensor]:
        return {id(tensor): tensor for tensor in self._tensors}

    def saw_load(
        self, module: nn.Module, state: Mapping[str, Any], frame: FrameType | None
    ) -> None:
        """Look at a module that is about to load a state_dict."""
        if _is_of_distributed_checkpoint(frame):
            return
        with undisturbed():
            own = [each for each in _own_values(module, state) if id(each) in self._followed]
            if own:
                place = place_of(frame, f"{type(module).__name__}.load_state_dict()")
                self._loads |= {id(each): _OwnLoad(place, content_of(each)) for each in own}

    def place_of_last(self, tensor: Tensor, now: Tensor) -> Place | None:
        """Return where a tensor was loaded from itself, if it still has the values from then.

        Args:
            tensor: the followed tensor.
            now: the tensor that holds its name now.
        """
        load = self._loads.get(id(tensor))
        return load.place if load is not None and same_content(load.content, now) else None


def _is_of_distributed_checkpoint(frame: FrameType | None) -> bool:
    """Tell whether torch.distributed.checkpoint loads, which fills a model's own tensors first."""
    module = "" if frame is None else str(frame.f_globals.get("__name__"))
    return module.startswith("torch.distributed.checkpoint")


def _own_values(module: nn.Module, state: Mapping[str, Any]) -> Iterable[Tensor]:
    """Yield the tensors of a module that a state_dict holds under their own names."""
    for name, submodule in named_modules(module):
        for _, own_name, tensor in own_tensors(submodule):
            value = state.get(join(name, own_name))
            if isinstance(value, Tensor) and share_memory(value, tensor):
                yield tensor
