"""Map values to colours and to places on an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable

LEVELS = 7
_LETTERS = 34
_LEAST, _MOST = (
    -6,
    1,
)  # decades of drift, in nats: below the first, and above the last, are level ends


def drift_level(drift: float | None) -> str:
    """Return the CSS class of a drift's colour: one for each decade from 1e-6 to 10 nats.

    Args:
        drift: the drift in nats; None where the bytes stayed the same.
    """
    if drift is None:
        return "same"
    if not math.isfinite(drift):
        return "broken"
    decade = math.floor(math.log10(drift)) if drift > 0 else _LEAST
    return f"d{min(max(decade, _LEAST), _MOST - 1) - _LEAST}"


def level_labels() -> list[tuple[str, str]]:
    """Return each level's CSS class, with what it means, for a legend."""
    levels = [(f"d{n}", f"{10.0 ** (n + _LEAST):g}") for n in range(LEVELS)]
    return [("same", "same bytes"), *levels, ("broken", "not finite")]


def finite_range(values: Iterable[float]) -> tuple[float, float]:
    """Return the least and the largest finite value, apart from each other."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    margin = abs(low) * 1e-3 or 1e-6
    return (low, high) if high > low else (low - margin, high + margin)


def end_of(name: str) -> str:
    """Return a name, or so much of its end as stands beside a row."""
    return name if len(name) <= _LETTERS else "…" + name[-_LETTERS:]


def short(value: float) -> str:
    """Return a value in at most seven characters or so."""
    return f"{value:.3g}"
