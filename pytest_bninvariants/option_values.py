"""What options accept: devices, dtypes, efforts. Only devices other than cpu need torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import ModuleType

from pytest_bninvariants.checks import is_int

DEVICES = "cpu, cuda, cuda:N, mps, xpu, auto (the best there is) or all (each kind there is)"
_BEST_FIRST = ("cuda", "xpu", "mps", "cpu")


def resolve_devices(names: Iterable[str], option: str) -> tuple[str, ...]:
    """Turn what users write into names of devices that are present, each once, in order.

    Args:
        names: what users wrote.
        option: where they wrote it, `--bn-device` or `bn_device`.

    Raises:
        ValueError: a value is unknown, or its device is absent; the message says why.
    """
    return tuple(
        dict.fromkeys(device for name in names for device in _resolve_device(name, option))
    )


def _resolve_device(name: str, option: str) -> list[str]:
    if name == "cpu":
        return ["cpu"]
    if name in ("auto", "all"):
        present = [kind for kind in _BEST_FIRST if kind == "cpu" or not why_absent(kind, 0)]
        return present[:1] if name == "auto" else present[::-1]
    match = re.fullmatch(r"(cuda|xpu|mps)(?::(\d+))?", name)
    if match is None or (match[1] == "mps" and match[2]):
        raise ValueError(f"{option}={name}: there is no such device; accepted are {DEVICES}")
    reason = why_absent(match[1], int(match[2] or 0))
    if reason:
        raise ValueError(f"{option}={name}: {reason}")
    return [name]


def why_absent(kind: str, index: int) -> str | None:
    """Return why a device is absent, or None if it is present.

    Args:
        kind: `cuda`, `xpu` or `mps`.
        index: its number, from 0.
    """
    import torch

    from pytest_bninvariants.torch_internals.private_api import xpu_is_compiled

    if kind == "mps":
        return _why_no_mps(torch)
    built: object = torch.version.cuda or torch.version.hip if kind == "cuda" else xpu_is_compiled()
    if not built:
        return f"torch {torch.__version__} is built without {kind.upper()} support"
    backend = torch.cuda if kind == "cuda" else torch.xpu
    count = backend.device_count()
    if count == 0:
        return f"torch {torch.__version__} finds no {kind.upper()} device: {_complaint(backend)}"
    if index >= count:
        last = "" if count == 1 else f" to {kind}:{count - 1}"
        there = "is 1 device" if count == 1 else f"are {count} devices"
        return f"there {there} of this kind, {kind}:0{last}"
    return None


def _complaint(backend: ModuleType) -> str:
    """Return the error that a backend raises when it is initialised."""
    try:
        backend.init()
    except Exception as error:  # drivers fail in many ways, and each is the answer
        return str(error).split(". ")[0].strip().rstrip(".")
    return "its driver reports none"


def _why_no_mps(torch: ModuleType) -> str | None:
    if not torch.backends.mps.is_built():
        return f"torch {torch.__version__} is built without MPS support"
    if not torch.backends.mps.is_available():
        return "MPS needs macOS 12.3 or newer and an Apple or AMD GPU"
    return None


HALF = ("bfloat16", "float16")
DTYPES = ("float64", "float32", *HALF)


EFFORTS = {"quick": 6, "default": 100, "thorough": 2000}


def count_cases(option: str, given: object) -> int:
    """Return a number of cases.

    Args:
        option: how an error shows where it was given, with its `=`.
        given: a whole number from 1, or a key of `EFFORTS`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str) and given in EFFORTS:
        return EFFORTS[given]
    if is_int(given) and given > 0:
        return given
    words = ", ".join(EFFORTS)
    raise ValueError(f"{option}{given}: accepted are a whole number from 1, {words}")
