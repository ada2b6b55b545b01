"""A verdict in a notebook: whole, and without anything that a name could inject."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

from hypothesis import given, strategies as st

from tests.reporting.test_verdict_data import of_training, verdict_with

TAGS = {"div", "p", "strong", "table", "tr", "th", "td", "pre"}
CRAFTED = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></tr></table></div><h1>",
    "' onmouseover='alert(1)",
    "<!-- ",
    "&lt;b&gt;",
    "]]><![CDATA[",
]


class Reader(HTMLParser):
    """Read the elements and the text of a piece of HTML, as a browser does."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def hold_that_it_is_only_text(name: str) -> None:
    verdict = verdict_with(name)
    for each in (verdict, dataclasses.replace(verdict, changes=())):
        read = Reader(each._repr_html_())
        assert read.tags <= TAGS
        assert read.attributes <= {("style", "text-align: left")}


def test_it_has_all_that_the_text_has() -> None:
    verdict = of_training()
    read = Reader(verdict._repr_html_())
    assert read.texts[0] == str(verdict).splitlines()[0]
    shown = " ".join(" ".join(read.texts).split())
    assert set(str(verdict).split()) <= set(shown.split())


def test_crafted_names_are_shown_as_they_are() -> None:
    for name in CRAFTED:
        hold_that_it_is_only_text(name)
        assert name in Reader(verdict_with(name)._repr_html_()).texts


@given(st.text(st.sampled_from("<>&'\"/! =-abc\n\ud800"), max_size=20))
def test_no_name_is_read_as_markup(name: str) -> None:
    hold_that_it_is_only_text(name)
    verdict_with(name)._repr_html_().encode("utf-8")
