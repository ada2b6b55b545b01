"""The heat strip: layers by steps, with the drift of each layer's statistics as colour."""

from __future__ import annotations

from itertools import groupby

from pytest_bninvariants.drift_history import DriftHistory, LayerHistory
from pytest_bninvariants.reporting.page.markup import Markup, element, joined
from pytest_bninvariants.reporting.page.scales import drift_level, end_of, level_labels, short

MOST_COLUMNS = 256
_ROW, _LABELS, _WIDTH, _TOP, _BOTTOM = 14, 220, 720, 6, 34


def heat_strip(history: DriftHistory) -> Markup:
    """Return the strip as SVG, with its legend; rows are layers, columns are steps."""
    columns = max(len(history.samples) - 1, 1)
    width = _WIDTH / columns
    height = _TOP + _ROW * len(history.layers) + _BOTTOM
    rows = [
        _row(layer, _TOP + _ROW * place, width, history)
        for place, layer in enumerate(history.layers)
    ]
    svg = element(
        "svg",
        *rows,
        _axis(history, width, height),
        *_marks(history, width, height),
        class_="strip",
        role="img",
        viewBox=f"0 0 {_LABELS + _WIDTH + 8} {height}",
        aria_label=f"drift of {len(history.layers)} BN layers by {history.by}",
    )
    return joined(svg, _legend())


def _row(layer: LayerHistory, top: float, width: float, history: DriftHistory) -> Markup:
    name = layer.name or "the model"
    shown = end_of(name)
    label = element(
        "text", element("title", name), shown, x=_LABELS - 6, y=top + _ROW - 4, text_anchor="end"
    )
    cells = []
    numbered = list(enumerate(layer.drifts))
    for level, group in groupby(numbered, key=lambda cell: drift_level(cell[1])):
        run = list(group)
        first, last = run[0][0], run[-1][0]
        said = f"{name}, {history.samples[first]} to {history.samples[last + 1]}: {_said(run)}"
        cells.append(
            element(
                "rect",
                element("title", said),
                class_=level,
                x=_LABELS + first * width,
                y=float(top),
                width=(last - first + 1) * width,
                height=_ROW - 1,
            )
        )
    return element("g", label, *cells)


def _said(run: list[tuple[int, float | None]]) -> str:
    drifts = [drift for _, drift in run if drift is not None]
    if not drifts:
        return "bit for bit the same"
    most = f"{short(max(drifts))} nats"
    return most if len(drifts) == 1 else f"up to {most} in each of {len(drifts)}"


def _axis(history: DriftHistory, width: float, height: float) -> Markup:
    last = len(history.samples) - 1
    ends = [(0, "start"), (last, "end")] if last > 0 else []
    return element(
        "g",
        *(
            element(
                "text",
                history.samples[column],
                x=_LABELS + column * width,
                y=height - 6,
                text_anchor=anchor,
            )
            for column, anchor in ends
        ),
    )


def _marks(history: DriftHistory, width: float, height: float) -> list[Markup]:
    return [
        element(
            "g",
            element("title", mark.text),
            element("line", x1=x, x2=x, y1=0, y2=height - _BOTTOM + 6, class_="mark"),
            element(
                "text",
                mark.text,
                x=x + 4 if x < _LABELS + _WIDTH / 2 else x - 4,
                y=height - 20,
                text_anchor="start" if x < _LABELS + _WIDTH / 2 else "end",
                class_="mark",
            ),
        )
        for mark in history.marks
        for x in [_LABELS + mark.column * width]
    ]


def _legend() -> Markup:
    items = [
        element("span", element("i", class_=f"key {level}"), text) for level, text in level_labels()
    ]
    return element("p", "drift in nats, from ", *items, class_="legend")
