"""Lay out rows as a table that a terminal, or a notebook, can show."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_bninvariants.reporting.lines import escape_html, one_line

_WIDEST_NAME = 36


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; a first cell that is too long stands on a line of its own.

    Args:
        headings: the columns' headings.
        rows: a cell for each column.
    """
    cells = [[one_line(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths[0] = min(widths[0], _WIDEST_NAME)
    lines = []
    for row in cells:
        if len(row[0]) > widths[0]:
            lines.append(f"  {row[0]}")
            row[0] = ""
        padded = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append(f"  {'  '.join(padded)}".rstrip())
    return lines


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML; nothing in a cell is taken for markup."""
    head = _html_row("th", headings)
    return f"<table>{head}{''.join(_html_row('td', row) for row in rows)}</table>"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape_html(cell)}</{tag}>' for cell in cells)}</tr>"
