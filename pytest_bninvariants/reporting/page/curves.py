"""Curves of running_mean and running_var over the steps, by layer, and by channel on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_bninvariants.drift_history import Band, DriftHistory, LayerHistory
from pytest_bninvariants.reporting.page.markup import Markup, element, joined, number
from pytest_bninvariants.reporting.page.scales import finite_range, short

_WIDTH, _HEIGHT, _LEFT, _EDGE = 380, 96, 62, 6


def curves(history: DriftHistory) -> Markup:
    """Return a panel of curves for each layer that moved, closed until somebody opens it."""
    moved = [layer for layer in history.layers if any(each is not None for each in layer.drifts)]
    still = [layer.name or "the model" for layer in history.layers if layer not in moved]
    panels = [_panel(layer) for layer in moved]
    if still:
        panels.append(element("p", f"Bit for bit the same: {', '.join(still)}", class_="soft"))
    return joined(*panels)


def _panel(layer: LayerHistory) -> Markup:
    pictures = element(
        "div",
        _band_picture("running_mean", layer.mean),
        _band_picture("running_var", layer.var),
        class_="pair",
    )
    summary = element("summary", layer.name or "the model")
    return element("details", summary, pictures, *_channels(layer), class_="layer")


def _channels(layer: LayerHistory) -> list[Markup]:
    shown, count = len(layer.channels), layer.count
    if not shown:
        return []
    title = f"the {count} channels"
    if shown < count:
        title = f"{shown} of {title}, those that moved most"
    lines = element(
        "div",
        _lines_picture("running_mean", [(each.number, each.mean) for each in layer.channels]),
        _lines_picture("running_var", [(each.number, each.var) for each in layer.channels]),
        class_="pair",
    )
    return [element("details", element("summary", title), lines)]


def _band_picture(name: str, band: Band) -> Markup:
    low, high = finite_range((*band.low, *band.high))
    upper = _points(band.high, low, high)
    lower = _points(band.low, low, high)
    area = element("polygon", points=" ".join([*upper, *reversed(lower)]), class_="band")
    middle = element("polyline", points=" ".join(_points(band.middle, low, high)), class_="curve")
    return _picture(f"{name}: mean, and range over the channels", [area, middle], low, high)


def _lines_picture(name: str, lines: list[tuple[int, Sequence[float]]]) -> Markup:
    low, high = finite_range(value for _, values in lines for value in values)
    drawn = [
        element(
            "polyline",
            element("title", f"channel {channel}"),
            points=" ".join(_points(values, low, high)),
            class_="curve thin",
        )
        for channel, values in lines
    ]
    return _picture(f"{name} of each channel", drawn, low, high)


def _picture(title: str, drawn: list[Markup], low: float, high: float) -> Markup:
    bottom = _HEIGHT - _EDGE
    return element(
        "figure",
        element("figcaption", title),
        element(
            "svg",
            element("line", x1=_LEFT, x2=_LEFT, y1=_EDGE, y2=bottom, class_="axis"),
            element("text", short(high), x=_LEFT - 6, y=_EDGE + 8, text_anchor="end"),
            element("text", short(low), x=_LEFT - 6, y=bottom, text_anchor="end"),
            *drawn,
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            role="img",
            aria_label=title,
        ),
    )


def _points(values: Sequence[float], low: float, high: float) -> list[str]:
    """Return the points of a curve; values that are not finite are left out."""
    step = (_WIDTH - _LEFT - _EDGE) / max(len(values) - 1, 1)
    height = _HEIGHT - 2 * _EDGE
    return [
        f"{number(_LEFT + place * step)},{number(_EDGE + (high - value) / (high - low) * height)}"
        for place, value in enumerate(values)
        if math.isfinite(value)
    ]
