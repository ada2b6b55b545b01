"""Tell whether a value is a number; to Python a `bool` is an integer, to a user it is not."""

from __future__ import annotations

from numbers import Real
from typing import TypeGuard


def is_int(value: object) -> TypeGuard[int]:
    """Tell whether a value is an integer, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a value is an integer or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[Real]:
    """Tell whether a value is a real number of any type, e.g. numpy's, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)
