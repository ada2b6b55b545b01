"""Make `device="simdev"`, an accelerator in the host's memory, known to torch: import this module.

README.md says what is simulated, and what is not.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.simulated_device.backend.build import build
from tests.simulated_device.backend.graphs import SimulatedGraph

_FOLDER = str(build())
sys.path.insert(0, _FOLDER)
import _simdev  # noqa: E402

sys.path.remove(_FOLDER)

NAME = "simdev"
WHOLE = 8 << 30
"""The memory of a device in bytes, unless `spare` leaves less."""


class Counted(Counter[str]):
    """What happened on the devices, by name; README.md lists the names."""

    @property
    def waits(self) -> int:
        """Return how often the host waited for a device."""
        return sum(number for name, number in self.items() if name.startswith("SYNC"))

    @property
    def copied_to_host(self) -> int:
        """Return how many bytes were copied to the host."""
        return self["D2H bytes"]


@contextmanager
def counted() -> Iterator[Counted]:
    """Count what happens on the devices; the counts are there when the block has ended."""
    into = Counted()
    _simdev.count(True)
    try:
        yield into
    finally:
        _simdev.count(False)
        into.update(_simdev.counts())


@contextmanager
def spare(number_of_bytes: int, index: int = 0) -> Iterator[None]:
    """Leave so many bytes of a device's memory, and no more."""
    _simdev.limit(index, _simdev.stats(index)["allocated"] + number_of_bytes)
    try:
        yield
    finally:
        _simdev.limit(index, WHOLE)


@contextmanager
def peak(index: int = 0) -> Iterator[list[int]]:
    """Measure how many bytes a device holds at most, beyond what it holds at the start."""
    _simdev.reset_peak(index)
    before, most = _simdev.stats(index)["allocated"], []
    try:
        yield most
    finally:
        most.append(_simdev.stats(index)["peak"] - before)


@contextmanager
def held(stream: torch.Stream) -> Iterator[None]:
    """Let what is issued on a stream wait, as on a busy device; at the end it is done."""
    _simdev.hold(stream.device.index or 0, stream.stream_id, True)
    try:
        yield
    finally:
        _simdev.hold(stream.device.index or 0, stream.stream_id, False)


@contextmanager
def without_float64() -> Iterator[None]:
    """Refuse float64 as MPS does: in making, in operators and in a cast on the way to the host."""
    to = torch.Tensor.to

    def refusing_to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        wide = (torch.float64, torch.complex128)
        asked = any(value is dtype for value in (*args, *kwargs.values()) for dtype in wide)
        if asked and self.device.type == NAME and self.numel():
            raise TypeError("Cannot convert a simulated tensor to float64: the device has none")
        return to(self, *args, **kwargs)

    _simdev.no64(True)
    torch.Tensor.to = refusing_to
    try:
        yield
    finally:
        torch.Tensor.to = to
        _simdev.no64(False)


def _index(device: Any) -> int:
    """Return a device's index; that of the current one for None, or without an index."""
    if device is None:
        return _simdev.current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return _simdev.current_device() if index is None else index


class _CurrentDevice:
    """Make a device the current one for a while, as `torch.cuda.device` does."""

    def __init__(self, device: Any) -> None:
        self._index = _index(device)

    def __enter__(self) -> None:
        self._before = _simdev.current_device()
        _simdev.set_device(self._index)

    def __exit__(self, *_: object) -> None:
        _simdev.set_device(self._before)


def _free_and_total(device: Any = None) -> tuple[int, int]:
    now = _simdev.stats(_index(device))
    return now["limit"] - now["allocated"], now["limit"]


def _seed(number: Any) -> int:
    return int(number) & (2**63 - 1)


def _seed_all(number: Any) -> None:
    for index in range(_simdev.device_count()):
        _simdev.manual_seed(_seed(number), index)


class _Graph(SimulatedGraph):
    """A graph of the simulated device; as on CUDA, a wait during its capture raises."""

    def capture_begin(self) -> None:
        torch.accelerator.synchronize()
        super().capture_begin()
        _simdev.refuse_waits(True)

    def capture_end(self) -> None:
        _simdev.refuse_waits(False)
        super().capture_end()


def _backend_module() -> types.ModuleType:
    """Return `torch.simdev`, with the functions that torch expects of a backend's module.

    https://docs.pytorch.org/tutorials/advanced/privateuseone.html
    """
    module: Any = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count, module.current_device = _simdev.device_count, _simdev.current_device
    module.set_device = lambda device: _simdev.set_device(_index(device))
    module.device = _CurrentDevice
    module.get_rng_state = lambda device=None: _simdev.get_rng_state(_index(device))
    module.set_rng_state = lambda state, device=None: _simdev.set_rng_state(state, _index(device))
    module.manual_seed = lambda seed: _simdev.manual_seed(_seed(seed), -1)
    module.manual_seed_all = _seed_all
    module.synchronize = lambda device=None: _simdev.synchronize(_index(device))
    module.current_stream = lambda device=None: torch.accelerator.current_stream(_index(device))
    module.Stream = lambda device=NAME: torch.Stream(device)
    module.mem_get_info = _free_and_total
    module.memory_allocated = lambda device=None: _simdev.stats(_index(device))["allocated"]
    module.SIMDEVGraph = _Graph
    module.is_current_stream_capturing = lambda: SimulatedGraph.capturing
    module.amp = types.ModuleType(f"torch.{NAME}.amp")
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    return module


torch.utils.rename_privateuse1_backend(NAME)
torch._register_device_module(NAME, _backend_module())
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
