"""The kit's tally as a chart: for each law and dtype, the largest error over its bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_bninvariants.reporting.page.markup import Markup, element
from pytest_bninvariants.reporting.page.scales import short

_ROW, _LABELS, _WIDTH, _TOP, _BOTTOM = 16, 260, 640, 8, 20
_DECADES = (-4, 1)  # of error over bound; what is outside stands at the edge


def law_chart(checks: Sequence[Mapping[str, Any]]) -> Markup:
    """Return a row for each law, with a dot for each layer, dtype and device.

    Args:
        checks: for each, the `law`, its `layer`, `dtype` and `device`, and the `worst` error over
            bound; None if nothing was compared with a bound.
    """
    measured = [check for check in checks if check["worst"] is not None]
    laws = list(dict.fromkeys(check["law"] for check in measured))
    height = _TOP + _ROW * len(laws) + _BOTTOM
    rows = [_row(law, _TOP + _ROW * place, measured) for place, law in enumerate(laws)]
    return element(
        "svg",
        _bound(height),
        *rows,
        *_axis(height),
        class_="laws",
        role="img",
        viewBox=f"0 0 {_LABELS + _WIDTH + 16} {height}",
        aria_label="largest error over bound, by law",
    )


def _row(law: str, top: int, checks: Sequence[Mapping[str, Any]]) -> Markup:
    label = element("text", law, x=_LABELS - 8, y=top + _ROW - 5, text_anchor="end")
    dots = []
    for check in (each for each in checks if each["law"] == law):
        worst = float(check["worst"])
        where = f"{check['layer']}, {check['dtype']} on {check['device']}"
        dots.append(
            element(
                "circle",
                element("title", f"{where}: {short(worst)} of the bound"),
                cx=_place(worst),
                cy=float(top + _ROW / 2),
                r=3,
                class_="dot" if worst <= 1 else "dot over",
            )
        )
    return element("g", label, *dots)


def _bound(height: int) -> Markup:
    x = _place(1.0)
    return element("line", x1=x, x2=x, y1=0, y2=height - _BOTTOM, class_="bound")


def _axis(height: int) -> list[Markup]:
    least, most = _DECADES
    return [
        element(
            "text",
            "the bound" if decade == 0 else f"{10.0**decade:g}",
            x=_place(10.0**decade),
            y=height - 6,
            text_anchor="middle",
        )
        for decade in range(least, most + 1)
    ]


def _place(ratio: float) -> float:
    least, most = _DECADES
    decades = math.log10(ratio) if ratio > 0 else least
    decades = most if math.isnan(decades) else min(max(decades, least), most)
    return _LABELS + (decades - least) / (most - least) * _WIDTH
