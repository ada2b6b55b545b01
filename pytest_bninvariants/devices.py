"""Tell which devices torch has, by the names that users write, and what a device can do.

A kind of device is torch's name for it, such as `cuda`; its module, such as `torch.cuda`, answers
for it. A package that adds a kind registers such a module:
https://docs.pytorch.org/tutorials/advanced/privateuseone.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import ModuleType
from typing import Any

DEVICES = (
    "cpu, auto (the best available), all (every kind available), or a kind of device that torch "
    "has, such as cuda, xpu, mps, npu, hpu or xla, alone or with a number, as in cuda:1"
)
_BEST_FIRST = ("cuda", "xpu", "mps", "mtia", "hpu", "xla")
_WITHOUT_VALUES = ("meta",)


def resolve_devices(names: Iterable[str], option: str) -> tuple[str, ...]:
    """Turn what users write into names of devices that are present, each once, in order.

    Args:
        names: what users wrote.
        option: where they wrote it, `--bn-device` or `bn_device`.

    Raises:
        ValueError: if a value is unknown, or its device is absent; the message says why.
    """
    return tuple(
        dict.fromkeys(device for name in names for device in _resolve_device(name, option))
    )


def _resolve_device(name: str, option: str) -> list[str]:
    if name == "cpu":
        return ["cpu"]
    if name in ("auto", "all"):
        present = [*(kind for kind in _kinds() if not why_absent(kind, 0)), "cpu"]
        return present[:1] if name == "auto" else present[::-1]
    match = re.fullmatch(r"([a-z]\w*)(?::(\d+))?", name)
    if match is None or match[1] == "cpu" or not _is_kind(match[1]):
        raise ValueError(f"{option}={name}: there is no such device; accepted: {DEVICES}")
    reason = why_absent(match[1], int(match[2] or 0))
    if reason:
        raise ValueError(f"{option}={name}: {reason}")
    return [name]


def _kinds() -> list[str]:
    """Return the kinds that torch may have; one that a package added is the best, as for torch."""
    from pytest_bninvariants.torch_internals.private_api import added_kind

    return list(dict.fromkeys((added_kind(), *_BEST_FIRST)))


def _is_kind(name: str) -> bool:
    import torch

    try:
        torch.device(name)
    except RuntimeError:
        return False
    return name not in _WITHOUT_VALUES


def why_absent(kind: str, index: int) -> str | None:
    """Return why a device is absent, or None if it is present and can start.

    Args:
        kind: its kind, such as `cuda`.
        index: its number, from 0.
    """
    import torch

    if kind in (checks := _build_checks()) and not checks[kind]():
        return f"torch {torch.__version__} is built without {kind.upper()} support"
    module = device_module(kind)
    if module is None:
        return (
            f"torch {torch.__version__} has no module torch.{kind}; import the package that adds "
            "it before, as in `pytest -p PACKAGE`"
        )
    if not _can_start(module, kind):
        return f"torch {torch.__version__} finds no {kind.upper()} device: {_complaint(module)}"
    count: int = module.device_count() if hasattr(module, "device_count") else 1
    if index < count:
        return None
    if count == 1:
        return f"there is 1 device of this kind, {kind}:0"
    return f"there are {count} devices of this kind, {kind}:0 to {kind}:{count - 1}"


def device_module(kind: str) -> Any:
    """Return torch's module for a kind of device, such as `torch.cuda`; None if it has none."""
    import torch

    module = getattr(torch, kind, None)
    return module if isinstance(module, ModuleType) else None


def _build_checks() -> dict[str, Callable[[], object]]:
    import torch

    from pytest_bninvariants.torch_internals.private_api import xpu_is_compiled

    return {
        "cuda": lambda: torch.version.cuda or torch.version.hip,
        "xpu": xpu_is_compiled,
        "mps": torch.backends.mps.is_built,
    }


def _can_start(module: Any, kind: str) -> bool:
    """Tell whether the driver can start: a machine may count cards that it cannot use."""
    import torch

    if kind == "mps":
        return torch.backends.mps.is_available()
    make_one = partial(torch.empty, 1, device=kind)
    return bool(module.is_available()) if hasattr(module, "is_available") else _works(make_one)


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except Exception:  # backends fail in many ways
        return False
    return True


def _complaint(module: Any) -> str:
    """Return the error that a backend raises when it is initialised."""
    if module.__name__ == "torch.mps":
        return "MPS needs macOS 12.3 or newer and an Apple or AMD GPU"
    try:
        getattr(module, "init", lambda: None)()
    except Exception as error:  # drivers fail in many ways, and each is the answer
        return str(error).split(". ")[0].strip().rstrip(".")
    return f"{module.__name__}.is_available() is False"


def wait_for(devices: Iterable[Any]) -> None:
    """Wait until devices have done what they were told, on each of their streams.

    While a CUDA graph is captured nothing runs, and a wait would end the capture.

    Args:
        devices: `torch.device`s; those of the CPU have nothing to wait for.
    """
    for device in devices:
        if device.type == "cpu" or is_capturing(device):
            continue
        synchronize = getattr(device_module(device.type), "synchronize", None)
        if synchronize is not None:
            synchronize() if device.type == "mps" else synchronize(device)


def is_capturing(device: Any) -> bool:
    """Tell whether this thread captures a device graph, such as a CUDA graph, on a kind of device.

    Args:
        device: a `torch.device` of this kind.
    """
    return device.type != "cpu" and _captures(device.type)


def captures_anything() -> bool:
    """Tell whether this thread captures a device graph on any kind of device."""
    return any(_captures(kind) for kind in _graph_kinds(tuple(_kinds())) if kind != "cpu")


def graph_classes() -> tuple[type, ...]:
    """Return the classes of device graphs, such as `torch.cuda.CUDAGraph`, that torch has."""
    return tuple(_graph_kinds(tuple(_kinds())).values())


@cache
def _graph_kinds(kinds: tuple[str, ...]) -> dict[str, type]:
    """Return the kinds of devices that have graphs, each with its class of them."""
    import torch

    homes: list[tuple[str, Any, str]] = [
        (kind, device_module(kind), f"{kind.upper()}Graph") for kind in kinds
    ]
    homes.append(("cpu", getattr(torch, "accelerator", None), "Graph"))  # of whatever kind there is
    classes: Iterable[tuple[str, Any]] = (
        (kind, getattr(home, name, None)) for kind, home, name in homes
    )
    needed = ("capture_begin", "capture_end", "replay")
    return {kind: each for kind, each in classes if all(hasattr(each, name) for name in needed)}


def _captures(kind: str) -> bool:
    """Ask a kind of device that is in use: a torch that is built without it raises."""
    module = device_module(kind)
    asks = getattr(module, "is_current_stream_capturing", None)
    return asks is not None and module.is_initialized() and bool(asks())


def has_float64(device: object) -> bool:
    """Tell whether a device computes in float64, as MPS and some GPUs of Intel do not.

    Args:
        device: a `torch.device`, or its name.
    """
    import torch

    name: Any = torch.device(device)  # type: ignore[call-overload]
    return name.type == "cpu" or _works(lambda: torch.zeros(1, dtype=torch.float64, device=name))
