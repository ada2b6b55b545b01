"""Where the documentation is on the web."""

from __future__ import annotations

SITE = "https://pytest-bninvariants.github.io/pytest-bninvariants"


def cause_link(cause: str) -> str:
    """Return the address of what the documentation says of a cause.

    Args:
        cause: its name.
    """
    return f"{SITE}/causes/#{cause}"
