"""Lanes of updates: a tick for each update of a layer, and a bar for each optimizer step."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_bninvariants.diagnosis.wording import counted
from pytest_bninvariants.drift_history import DriftHistory, Lane
from pytest_bninvariants.reporting.page.markup import Markup, element, joined, number
from pytest_bninvariants.reporting.page.scales import end_of

_ROW, _LABELS, _WIDTH, _TOP = 16, 220, 720, 4


def lanes(history: DriftHistory) -> Markup:
    """Return the lanes as SVG, with their legend; time goes from event to event."""
    width = _WIDTH / max(history.events, 1)
    height = _TOP + _ROW * len(history.lanes)
    bars = _lines(history.steps, width, 0, height, "step")
    drawn = [_lane(lane, _TOP + _ROW * place, width) for place, lane in enumerate(history.lanes)]
    svg = element(
        "svg",
        element("g", element("title", "optimizer steps"), bars),
        *drawn,
        class_="lanes",
        role="img",
        viewBox=f"0 0 {_LABELS + _WIDTH + 8} {height}",
        aria_label=f"updates of {len(history.lanes)} BN layers",
    )
    return joined(svg, _legend())


def _lane(lane: Lane, top: int, width: float) -> Markup:
    name = lane.name or "the model"
    shown = end_of(name)
    said = f"{name}: {counted(len(lane.ticks), 'update')}, {len(lane.in_backward)} in backward"
    again = set(lane.in_backward)
    forward = [moment for moment in lane.ticks if moment not in again]
    return element(
        "g",
        element("title", said),
        element("text", shown, x=_LABELS - 6, y=top + _ROW - 4, text_anchor="end"),
        _lines(forward, width, top + 3, top + _ROW - 3, "tick"),
        _lines(lane.in_backward, width, top + 3, top + _ROW - 3, "tick backward"),
    )


def _lines(moments: Iterable[int], width: float, top: int, bottom: int, kind: str) -> Markup:
    """Return vertical lines at some moments, as one path."""
    places = (number(_LABELS + (moment + 0.5) * width) for moment in moments)
    return element("path", d="".join(f"M{x} {top}V{bottom}" for x in places), class_=kind)


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
