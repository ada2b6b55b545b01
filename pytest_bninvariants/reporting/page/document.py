"""Put sections together into one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_bninvariants.drift_history import DriftHistory
from pytest_bninvariants.reporting.page.curves import curves
from pytest_bninvariants.reporting.page.heat_strip import heat_strip
from pytest_bninvariants.reporting.page.lanes import lanes
from pytest_bninvariants.reporting.page.markup import Markup, element, joined

_FOLDER = Path(__file__).parent
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, *sections: Markup) -> str:
    """Return a whole page; it loads nothing, from this machine or another.

    Args:
        title: its title.
        sections: what it shows.
    """
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", _asset("style.css")),
    )
    body = element("body", element("h1", title), *sections, element("script", _asset("filter.js")))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _asset(name: str) -> Markup:
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def history_section(history: DriftHistory) -> Markup:
    """Return all pictures of a history: the strip, the lanes and the curves."""
    parts = []
    if len(history.samples) > 1 and history.layers:
        parts += [
            element("h3", f"Drift of the running statistics, by {history.by}"),
            heat_strip(history),
        ]
    if history.lanes:
        parts += [element("h3", "Updates, in the order in which they happened"), lanes(history)]
    if history.layers:
        parts += [element("h3", "Running statistics"), curves(history)]
    return joined(*parts)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> Markup:
    """Return a table with a field that filters its rows.

    Args:
        headings: the columns' headings.
        rows: a cell for each column.
        name: the table's id in the page.
    """
    head = element("thead", element("tr", *(element("th", each) for each in headings)))
    body = element(
        "tbody", *(element("tr", *(element("td", cell) for cell in row)) for row in rows)
    )
    field = element("input", type="search", placeholder="filter", data_filters=name)
    return joined(field, element("div", element("table", head, body, id=name), class_="scroll"))
