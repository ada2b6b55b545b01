"""Pages are well-formed and self-contained, and no name in them is markup."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from pytest_bninvariants.drift_history import (
    Band,
    ChannelHistory,
    DriftHistory,
    Lane,
    LayerHistory,
    Mark,
)
from pytest_bninvariants.reporting.page.document import document, history_section, table
from pytest_bninvariants.reporting.page.heat_strip import heat_strip
from pytest_bninvariants.reporting.page.lanes import lanes
from pytest_bninvariants.reporting.page.markup import Markup, element
from pytest_bninvariants.reporting.page.scales import drift_level, finite_range

EVIL = "</svg><script>alert('\"&')</script>\x1b[0m\ud800"


def history(*drifts: float | None, name: str = "bn1", mark: str = "") -> DriftHistory:
    line = tuple(float(place) for place in range(len(drifts) + 1))
    band = Band(line, line, line)
    channels = (ChannelHistory(0, line, line),)
    return DriftHistory(
        by="optimizer step",
        samples=tuple(f"step {place}" for place in range(len(drifts) + 1)),
        layers=(LayerHistory(name, drifts, band, band, channels, 3),),
        marks=(Mark(1, mark),) if mark else (),
        lanes=(Lane(name, (0, 2), (2,)),),
        steps=(1, 3),
        events=4,
    )


def tree(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<page>{markup}</page>")


def test_runs_of_one_colour_are_one_cell_that_says_what_it_covers() -> None:
    strip = tree(heat_strip(history(None, None, 0.02, 0.03, 5.0)))
    cells = strip.findall(".//rect")
    assert [cell.get("class") for cell in cells] == ["same", "d4", "d6"]
    assert [cell.findtext("title") for cell in cells] == [
        "bn1, step 0 to step 2: bit for bit the same",
        "bn1, step 2 to step 4: up to 0.03 nats in each of 2",
        "bn1, step 4 to step 5: 5 nats",
    ]
    widths = [float(cell.get("width") or 0) for cell in cells]
    assert widths == [288, 288, 144]


@pytest.mark.parametrize(
    ("drift", "level"),
    [
        (None, "same"),
        (0.0, "d0"),
        (1e-9, "d0"),
        (1e-6, "d0"),
        (2e-5, "d1"),
        (0.5, "d5"),
        (1.0, "d6"),
        (1e4, "d6"),
        (math.inf, "broken"),
        (math.nan, "broken"),
    ],
)
def test_each_decade_of_drift_has_a_colour(drift: float | None, level: str) -> None:
    assert drift_level(drift) == level


def test_a_mark_stands_where_it_happened_and_names_the_line() -> None:
    strip = tree(heat_strip(history(None, 0.1, mark="Net.train(True) at train.py:31")))
    (line,) = strip.findall(".//line[@class='mark']")
    (cell,) = [each for each in strip.findall(".//rect") if each.get("class") == "d5"]
    assert line.get("x1") == cell.get("x")
    assert "Net.train(True) at train.py:31" in "".join(strip.itertext())


def test_a_lane_has_a_tick_for_each_update_and_a_bar_for_each_step() -> None:
    picture = tree(lanes(history(0.1, 0.1)))
    paths = {path.get("class"): path.get("d") for path in picture.findall(".//path")}
    assert paths == {
        "step": "M490 0V20M850 0V20",
        "tick": "M310 7V17",
        "tick backward": "M670 7V17",
    }
    assert "bn1: 2 updates, 1 in backward" in "".join(picture.itertext())


def test_a_crafted_name_is_text_everywhere() -> None:
    page = document(EVIL, history_section(history(0.1, None, name=EVIL, mark=EVIL)))
    assert "<script>alert" not in page
    assert "\x1b" not in page
    page.encode("utf-8")
    body = re.sub(r"<(style|script)>.*?</\1>|<meta [^>]*>|<!doctype html>", "", page, flags=re.S)
    text = "".join(ElementTree.fromstring(body).itertext())
    assert "</svg><script>alert('\"&')</script>\\x1b[0m\\ud800" in text


def test_a_page_loads_nothing() -> None:
    page = document("title", history_section(history(0.1)))
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|url\(|@import|https?:", page)


def test_a_history_without_columns_or_layers_has_no_picture() -> None:
    nothing = DriftHistory(by="forward", samples=("start",), layers=())
    assert history_section(nothing) == ""


def test_curves_leave_out_what_is_not_finite() -> None:
    odd = (0.0, math.nan, math.inf, 1.0)
    band = Band(odd, odd, odd)
    layer = LayerHistory("bn", (0.1, math.inf, math.inf), band, band, (), 1)
    made = DriftHistory(by="forward", samples=("a", "b", "c", "d"), layers=(layer,))
    assert "nan" not in history_section(made).replace("nats", "")
    assert finite_range([math.nan]) == (0.0, 1.0)


def test_a_history_is_rebuilt_from_its_data() -> None:
    made = history(None, 0.1, math.inf, mark="here")
    data = {
        "by": made.by,
        "samples": list(made.samples),
        "layers": [
            {
                "name": "bn1",
                "drifts": [None, 0.1, "inf"],
                "mean": {"low": [0, 1, 2, 3], "middle": [0, 1, 2, 3], "high": [0, 1, 2, 3]},
                "var": {"low": [0, 1, 2, 3], "middle": [0, 1, 2, 3], "high": [0, 1, 2, 3]},
                "channels": [{"number": 0, "mean": [0, 1, 2, 3], "var": [0, 1, 2, 3]}],
                "count": 3,
            }
        ],
        "marks": [{"column": 1, "text": "here"}],
        "lanes": [{"name": "bn1", "ticks": [0, 2], "in_backward": [2]}],
        "steps": [1, 3],
        "events": 4,
    }
    assert DriftHistory.from_dict(data) == made


def test_an_attribute_without_a_value_and_one_that_is_none() -> None:
    assert element("p", "a<b", class_="x&y", hidden=True, id=None) == (
        '<p class="x&amp;y" hidden>a&lt;b</p>'
    )
    assert element("p", Markup("<b></b>")) == "<p><b></b></p>"


def test_a_table_has_a_filter_for_its_rows() -> None:
    made = tree(table(["test"], [["a"], ["<b>"]], "held").replace('"held">', '"held" x="1">'))
    assert made.find("input").get("data-filters") == "held"  # type: ignore[union-attr]
    assert [cell.text for cell in made.findall(".//td")] == ["a", "<b>"]
