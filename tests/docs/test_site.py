"""The site: its navigation, the length of its pages, and the links between them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_bninvariants.reporting.doc_links import SITE, cause_link
from tests.test_docs import PAGES, ROOT

DOCS = ROOT / "docs"
IN_DOCS = [page for page in PAGES if page.is_relative_to(DOCS)]
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
MOST_LINES = 300
LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)|!\[[^]]*\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return a page's text without its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def links(page: Path) -> list[str]:
    return [one or other for one, other in LINK.findall(prose(page))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, by the rule of Python-Markdown."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading) for heading in headings]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", each).strip().lower()) for each in plain}


def in_nav(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for child in entry.values() if isinstance(entry, dict) else entry:
            yield from in_nav(child)


def test_the_navigation_has_each_page_once() -> None:
    pages = list(in_nav(yaml.safe_load(CONFIG)["nav"]))
    assert sorted(pages) == sorted(str(page.relative_to(DOCS)) for page in IN_DOCS)


@pytest.mark.parametrize("page", IN_DOCS, ids=name)
def test_a_page_has_one_title_and_is_not_long(page: Path) -> None:
    assert len(re.findall(r"^# ", prose(page), re.MULTILINE)) == 1
    assert len(page.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    for target in links(page):
        if target.startswith(f"{SITE}/"):
            path, _, anchor = target.removeprefix(f"{SITE}/").partition("#")
            found = published(path)
        elif target.startswith(("https://", "http://")):
            continue
        else:
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert page not in IN_DOCS or found.is_relative_to(DOCS), f"{target} is not on the site"
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def published(path: str) -> Path:
    """Return the page behind an address of the site."""
    page = DOCS / path
    return page / "index.md" if not path or page.is_dir() else page.with_suffix(".md")


def test_links_of_the_readme_are_absolute_so_that_they_work_on_pypi() -> None:
    found = links(ROOT / "README.md")
    assert found
    assert [target for target in found if not target.startswith(("https://", "#"))] == []


@pytest.mark.parametrize(
    ("text", "found"), [("[a](b.md#c) ![d](e.svg)", ["b.md#c", "e.svg"]), ("`[a](b)`", ["b"])]
)
def test_links_are_found(tmp_path: Path, text: str, found: list[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{text}\n\n```text\n[not](this.md)\n```\n")
    assert links(page) == found


def test_the_address_of_the_site_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Documentation"] == f"{SITE}/"
    assert yaml.safe_load(CONFIG)["site_url"] == f"{SITE}/"


def test_the_address_that_a_failure_gives_leads_to_the_section_of_its_cause() -> None:
    path, _, anchor = cause_link("mode-flip").removeprefix(f"{SITE}/").partition("#")
    assert anchor in anchors(published(path))
