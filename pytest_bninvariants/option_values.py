"""Values of options that are no devices: dtypes and efforts."""

from __future__ import annotations

from pytest_bninvariants.checks import is_int

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
