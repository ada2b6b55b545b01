"""Put a change of values into words."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def describe_difference(
    old_bytes: Tensor, new_bytes: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> str:
    """Say how many values differ, how far, and where the difference is largest.

    Args:
        old_bytes: the bytes before, flat.
        new_bytes: the bytes now, flat and of the same number.
        dtype: the values' dtype.
        shape: their shape.
    """
    width = dtype.itemsize
    old_bytes, new_bytes = old_bytes.cpu(), new_bytes.cpu()  # a device may be out of memory
    differs = (old_bytes.view(-1, width) != new_bytes.view(-1, width)).any(1)
    old, new = old_bytes.view(dtype), new_bytes.view(dtype)
    try:
        distance = _distance(old, new)
    except (RuntimeError, NotImplementedError):  # dtypes that torch only stores, e.g. bits8
        return f"{int(differs.sum())} of {differs.numel()} values"
    if shape == ():
        return arrow(_number(old[0]), _number(new[0]))
    distance = torch.where(differs, distance, -1.0).nan_to_num(nan=math.inf, posinf=math.inf)
    worst = int(distance.argmax())
    at = [int(i) for i in torch.unravel_index(torch.tensor(worst, device="cpu"), shape)]
    size = f", max |d| {distance[worst].item():.1e}" if math.isfinite(distance[worst]) else ""
    pair = arrow(_number(old[worst]), _number(new[worst]))
    return f"{int(differs.sum())} of {differs.numel()} values{size} at {at}: {pair}"


def _distance(old: Tensor, new: Tensor) -> Tensor:
    wide = torch.complex128 if old.is_complex() else torch.float64
    return (new.to(wide) - old.to(wide)).abs()


def _number(value: Tensor) -> complex:
    if value.dtype.is_floating_point:
        return float(value.to(torch.float64))
    if value.is_complex():
        return complex(value.to(torch.complex128).item())
    return int(value.item())


def arrow(old: complex, new: complex) -> str:
    """Return `old -> new`, with as many digits as tell them apart, and at least three."""
    texts = [repr(old), repr(new)]
    for digits in range(3, 18):
        texts = [_short(old, digits), _short(new, digits)]
        if texts[0] != texts[1] and not _overflow((old, new), texts):
            break
    return f"{texts[0]} -> {texts[1]}"


def _overflow(numbers: tuple[complex, complex], texts: list[str]) -> bool:
    """Tell whether rounding made a number infinite, as it can next to the largest float."""
    return any(
        isinstance(number, float) and math.isfinite(number) and not math.isfinite(float(text))
        for number, text in zip(numbers, texts, strict=True)
    )


def _short(value: complex, digits: int) -> str:
    if not isinstance(value, float):
        return f"{value:.{digits}g}" if isinstance(value, complex) else str(value)
    text = f"{value:.{digits}g}"
    return text if not text.lstrip("-").isdigit() else f"{text}.0"
