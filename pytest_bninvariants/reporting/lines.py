"""Format lines that fit in a terminal, and places in the user's code."""

from __future__ import annotations

import html
import textwrap

from pytest_bninvariants.frames import relative_path
from pytest_bninvariants.verdict import Place

WIDTH = 76  # pytest puts "E   " before each line
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
        one_line(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def one_line(text: str) -> str:
    """Return a text with what cannot be printed escaped: a name may contain anything.

    `repr` escapes the same: line breaks and other control characters, marks that reverse the
    direction of what follows, and halves of surrogate pairs, which no encoding can write.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def printable(text: str) -> str:
    """Return a text of several lines with what cannot be printed escaped, but for tabs."""
    lines = ("\t".join(map(one_line, line.split("\t"))) for line in text.split("\n"))
    return "\n".join(lines)


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
