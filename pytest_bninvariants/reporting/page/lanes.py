"""Lanes of updates: a tick for each update of a layer, and a bar for each optimizer step."""

from __future__ import annotations

from pytest_bninvariants.drift_history import DriftHistory
from pytest_bninvariants.reporting.page.markup import Markup, element, joined

_ROW, _LABELS, _WIDTH, _TOP = 16, 220, 720, 4
_LETTERS = 34


def lanes(history: DriftHistory) -> Markup:
    """Return the lanes as SVG, with their legend; time goes from event to event."""
    width = _WIDTH / max(history.events, 1)
    height = _TOP + _ROW * len(history.lanes)
    drawn = [_bar(moment, width, height) for moment in history.steps]
    for place, lane in enumerate(history.lanes):
        top = _TOP + _ROW * place
        name = lane.name or "the model"
        shown = name if len(name) <= _LETTERS else "…" + name[-_LETTERS:]
        label = element(
            "text",
            element("title", f"{name}: {len(lane.ticks)} updates"),
            shown,
            x=_LABELS - 6,
            y=top + _ROW - 4,
            text_anchor="end",
        )
        again = set(lane.in_backward)
        ticks = [_tick(moment, top, width, backward=moment in again) for moment in lane.ticks]
        drawn.append(element("g", label, *ticks))
    svg = element(
        "svg",
        *drawn,
        class_="lanes",
        role="img",
        viewBox=f"0 0 {_LABELS + _WIDTH + 8} {height}",
        aria_label=f"updates of {len(history.lanes)} BN layers",
    )
    return joined(svg, _legend())


def _bar(moment: int, width: float, height: float) -> Markup:
    x = _LABELS + (moment + 0.5) * width
    return element(
        "line", element("title", "optimizer step"), x1=x, x2=x, y1=0, y2=height, class_="step"
    )


def _tick(moment: int, top: float, width: float, *, backward: bool) -> Markup:
    x = _LABELS + (moment + 0.5) * width
    said = "updated in backward" if backward else "updated"
    return element(
        "line",
        element("title", said),
        x1=x,
        x2=x,
        y1=float(top + 3),
        y2=float(top + _ROW - 3),
        class_="tick backward" if backward else "tick",
    )


def _legend() -> Markup:
    items = [
        element("span", element("i", class_=f"key {key}"), text)
        for key, text in (
            ("tick", "update"),
            ("backward", "update in backward"),
            ("step", "optimizer step"),
        )
    ]
    return element("p", *items, class_="legend")
