"""Keep and restore the states of the random generators that a step may draw from."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pytest_bninvariants.devices import device_module
from pytest_bninvariants.selection.walk import all_tensors


class RngStates:
    """The states of the generators of Python, of torch and, if it is loaded, of numpy.

    Args:
        model: a model; the generators of its devices are included.
    """

    def __init__(self, model: nn.Module) -> None:
        devices = {t.device for t in all_tensors(model) if t.device.type != "cpu"}
        self._devices = [d for d in devices if hasattr(device_module(d.type), "get_rng_state")]
        self._states = self._now()

    def moved(self) -> bool:
        """Tell whether any generator has drawn since."""
        pairs = zip(self._now(), self._states, strict=True)
        return any(old is not None and _bytes(new) != _bytes(old) for new, old in pairs)

    def restore(self) -> None:
        """Put the generators back into these states."""
        python_state, numpy_state, torch_state, *device_states = self._states
        random.setstate(python_state)
        if numpy_state is not None:
            sys.modules["numpy.random"].set_state(numpy_state)
        torch.set_rng_state(torch_state)
        for device, state in zip(self._devices, device_states, strict=True):
            device_module(device.type).set_rng_state(state, *_index(device))

    def _now(self) -> list[Any]:
        numpy = sys.modules.get("numpy.random")
        numpy_state = None if numpy is None else numpy.get_state()
        device_states = [device_module(d.type).get_rng_state(*_index(d)) for d in self._devices]
        return [random.getstate(), numpy_state, torch.get_rng_state(), *device_states]


@contextmanager
def preserved_rng(model: nn.Module) -> Iterator[RngStates]:
    """Put the random generators back when the block ends."""
    states = RngStates(model)
    try:
        yield states
    finally:
        states.restore()


def _bytes(state: Any) -> bytes:
    return bytes(state.tolist()) if isinstance(state, torch.Tensor) else pickle.dumps(state)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    # torch.mps has one device, and its functions take no argument
    return () if device.type == "mps" else (device,)
