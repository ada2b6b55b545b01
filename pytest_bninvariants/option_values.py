"""Values of options: devices, dtypes, efforts. Only devices other than cpu need torch."""

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
        ValueError: if a value is unknown, or its device is absent; the message says why.
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
        raise ValueError(f"{option}={name}: there is no such device; accepted: {DEVICES}")
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
        if count == 1:
            return f"there is 1 device of this kind, {kind}:0"
        return f"there are {count} devices of this kind, {kind}:0 to {kind}:{count - 1}"
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


def count_cases(option: str, effort: object) -> int:
    """Return the number of cases that an effort stands for.

    Args:
        option: the name of the option in an error, with its `=`.
        effort: a whole number >= 1, or a key of `EFFORTS`.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(effort, str) and effort in EFFORTS:
        return EFFORTS[effort]
    if is_int(effort) and effort > 0:
        return effort
    *words, last = EFFORTS
    raise ValueError(
        f"{option}{effort}: expected a whole number >= 1, {', '.join(words)} or {last}"
    )
