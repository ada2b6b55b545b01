"""How many cases a law is tried on; whoever reads options needs no torch for that."""

from __future__ import annotations

EFFORTS = {"quick": 6, "default": 100, "thorough": 2000}


def cases(option: str, given: object) -> int:
    """Return the number that is meant.

    Args:
        option: what gives it, with its `=`.
        given: a whole number from 1, or a word for one.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str) and given in EFFORTS:
        return EFFORTS[given]
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    words = ", ".join(EFFORTS)
    raise ValueError(f"{option}{given}: accepted are a whole number from 1, {words}")
