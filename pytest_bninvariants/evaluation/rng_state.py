"""The states of the random generators that a step may draw from."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pytest_bninvariants.selection.model_names import all_tensors


class Generators:
    """Keep the states of Python's, torch's and, if it is loaded, numpy's generators as they are.

    Args:
        model: whose devices' generators count.
    """

    def __init__(self, model: nn.Module) -> None:
        devices = {t.device for t in all_tensors(model)}
        self._devices = [device for device in devices if device.type in ("cuda", "xpu", "mps")]
        self._states = self._now()

    def moved(self) -> bool:
        """Tell whether any was drawn from."""
        both = zip(self._now(), self._states, strict=True)
        return any(kept is not None and _bytes(now) != _bytes(kept) for now, kept in both)

    def restore(self) -> None:
        """Put them back."""
        of_python, of_numpy, of_torch, *of_devices = self._states
        random.setstate(of_python)
        if of_numpy is not None:
            sys.modules["numpy.random"].set_state(of_numpy)
        torch.set_rng_state(of_torch)
        for device, state in zip(self._devices, of_devices, strict=True):
            _backend(device).set_rng_state(state, *_index(device))

    def _now(self) -> list[Any]:
        numpy = sys.modules.get("numpy.random")
        of_numpy = None if numpy is None else numpy.get_state()
        of_devices = [_backend(d).get_rng_state(*_index(d)) for d in self._devices]
        return [random.getstate(), of_numpy, torch.get_rng_state(), *of_devices]


@contextmanager
def kept(model: nn.Module) -> Iterator[Generators]:
    """Put the generators back in the end."""
    generators = Generators(model)
    try:
        yield generators
    finally:
        generators.restore()


def _bytes(state: Any) -> bytes:
    return bytes(state.tolist()) if isinstance(state, torch.Tensor) else pickle.dumps(state)


def _backend(device: torch.device) -> Any:
    return getattr(torch, device.type)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)
