"""The generated pages of the reference are what the plugin declares, and leave nothing out."""

from __future__ import annotations

import re

import pytest

import pytest_bninvariants
from tests.docs.reference import FOLDER, pages


@pytest.mark.parametrize("name", pages())
def test_a_generated_page_is_as_the_plugin_declares_it(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text == pages()[name], "run python -m tests.docs.reference"


def test_the_page_has_each_option_of_this_run(pytestconfig: pytest.Config) -> None:
    shown = set(re.findall(r"`--(bn-[a-z-]+)", pages()["options.md"]))
    assert shown == {n.replace("_", "-") for n in vars(pytestconfig.option) if n.startswith("bn_")}


def test_the_page_has_each_marker_of_this_run(pytestconfig: pytest.Config) -> None:
    shown = re.findall(r"^    @pytest\.mark\.(.*)$", pages()["markers.md"], re.MULTILINE)
    lines = pytestconfig.getini("markers")
    assert [each for each in shown if not any(line.startswith(f"{each}: ") for line in lines)] == []
    assert {each.partition("(")[0] for each in shown} >= {"frozen_bn", "in_sync", "ranks"}


def test_each_public_name_has_an_entry() -> None:
    text = "".join((FOLDER / f"{page}.md").read_text() for page in ("functions", "exceptions"))
    entries = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert sorted(entry.rpartition(".")[2] for entry in entries) == pytest_bninvariants.__all__
    for entry in entries:
        module, _, name = entry.rpartition(".")
        assert getattr(pytest_bninvariants, name).__module__ == module
