"""Lines of text that fit in a terminal, and places in them."""

from __future__ import annotations

import textwrap

from pytest_bninvariants.frames import relative_path
from pytest_bninvariants.verdict import Place

WIDTH = 76  # pytest puts "E   " before each line


def wrapped(text: str, *, first: str, rest: str) -> list[str]:
    """Return a text as lines, the first and the rest each after what is put before them."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def where(place: Place) -> str:
    """Return a place as `net.py:14 in forward`, and which library acted there."""
    tool = f", by {place.tool}" if place.tool else ""
    return f"{relative_path(place.file)}:{place.line} in {place.function}{tool}"
