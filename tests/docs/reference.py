"""Write the reference pages that come from the plugin: `python -m tests.docs.reference`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_bninvariants.catalogue import INVARIANTS, RANKS, Marker
from pytest_bninvariants.plugin import fixtures
from pytest_bninvariants.plugin.markers import MARKERS
from pytest_bninvariants.plugin.option_declarations import add_options

FOLDER = Path(__file__).parents[2] / "docs" / "reference"

OPTIONS = """\
# Options and ini keys

What `pytest --help` says. A command line option wins over the ini key of the same name; an ini key
goes into `pytest.ini`, or into `[tool.pytest.ini_options]` of `pyproject.toml`. A wrong value ends
the run before it starts, with an error that says what is accepted.
"""
MARKERS_PAGE = """\
# Markers and fixtures

## Markers

What `pytest --markers` says. A marker puts its check around the test's call and finds the model
among the test's fixtures. It also works on a class, and for a whole module as `pytestmark`. Names
of modules cover what is below them; `*` and `?` work as in a shell.
"""
FIXTURES = """\
## Fixtures

Each is made once for the session and keeps nothing, so it can be used under hypothesis' `@given`.
"""


def pages() -> dict[str, str]:
    """Return the generated pages by file name."""
    return {"options.md": _options_page(), "markers.md": _markers_page()}


def _options_page() -> str:
    parser = pytest.Parser(_ispytest=True)
    add_options(parser, [])
    parts = [OPTIONS, "## Options\n", "| option | meaning |", "|---|---|"]
    for option in parser.getgroup("bninvariants").options:
        attributes = option.attrs()
        metavar = f"={attributes['metavar']}" if attributes.get("metavar") else ""
        names = ", ".join(f"`{name}{metavar}`" for name in option.names())
        parts.append(f"| {names} | {attributes['help']} |")
    parts += ["", "## Ini keys", "", "| key | meaning |", "|---|---|"]
    for key in parser._inidict:
        parts.append(f"| `{key}` | {parser._inidict[key][0]} |")
    return "\n".join(parts) + "\n"


def _markers_page() -> str:
    return "\n".join([MARKERS_PAGE, *_marker_sections(), FIXTURES, *_fixture_rows()]) + "\n"


def _marker_sections() -> Iterator[str]:
    for name, marker in {**MARKERS, "ranks": RANKS}.items():
        yield f"### {name}\n"
        yield f"    @pytest.mark.{name}{marker.signature}\n"
        yield f"{_sentence(marker)} [More]({_page(name)}).\n"


def _sentence(marker: Marker) -> str:
    return marker.help[0].upper() + marker.help[1:].rstrip(".") + "."


def _page(name: str) -> str:
    if name == "ranks":
        return "../ranks.md"
    return f"../invariants/{'frozen' if name == 'frozen_bn' else name}.md"


def _fixture_rows() -> Iterator[str]:
    yield "| fixture | use |"
    yield "|---|---|"
    for name in [*INVARIANTS, "bn_conforms", "reference_bn", "bn_device"]:
        doc = getattr(fixtures, name).__doc__ or getattr(fixtures, name)._fixture_function.__doc__
        yield f"| `{name}` | {' '.join(doc.split())} |"


if __name__ == "__main__":
    for page, text in pages().items():
        (FOLDER / page).write_text(text, encoding="utf-8")
