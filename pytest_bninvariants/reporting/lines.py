"""Format lines that fit in a terminal, and places in the user's code."""

from __future__ import annotations

import html
import re
import textwrap

from pytest_bninvariants.frames import relative_path
from pytest_bninvariants.verdict import Place

WIDTH = 76  # pytest puts "E   " before each line
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
INDENT = " " * 5
"""What stands before a line without a label; as wide as a label, such as `why  `."""


def wrap(text: str, *, first: str, rest: str) -> list[str]:
    """Wrap a text into lines that fit.

    Args:
        text: the text.
        first: the start of the first line.
        rest: the start of the other lines.
    """
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def printable(text: str) -> str:
    """Return a text with what cannot be printed escaped, since a name may contain anything.

    That is control characters, and halves of surrogate pairs, which no encoding can write.
    """
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)


def escape_html(text: str) -> str:
    """Return a text that HTML shows as it is, in an element or in an attribute."""
    return html.escape(printable(text))


def labelled(label: str, text: str) -> list[str]:
    """Wrap a text into indented lines, the first of which starts with a label."""
    return wrap(text, first=label.ljust(len(INDENT)), rest=INDENT)


def count_hidden(number: int) -> list[str]:
    """Return a line that says how many similar entries are not shown, if any."""
    return [f"{INDENT}and {number} more like these; -v shows all"] if number else []


def describe_place(place: Place) -> str:
    """Return a place as `net.py:14 in forward`, with the library that acted there, if any."""
    tool = f", by {place.tool}" if place.tool else ""
    return f"{relative_path(place.file)}:{place.line} in {place.function}{tool}"
