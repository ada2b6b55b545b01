"""The header says what judges, on which devices, and whether the run is audited."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.plugin.sessions import Sessions

VERSIONS = f"bn-invariants {version('pytest-bninvariants')}, torch {version('torch')}"


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        ([], "devices cpu, audit off"),
        (["--bn-audit"], "devices cpu, audit report"),
        (["--bn-audit=fail", "-n1"], "devices cpu, audit fail"),
    ],
)
def test_it_is_one_line(sessions: Sessions, options: list[str], rest: str) -> None:
    session = sessions.run("def test_passes(): pass", *options)
    assert session.lines.count(f"{VERSIONS}, {rest}") == 1


@pytest.mark.parametrize("option", ["-q", "--no-header"])
def test_it_is_not_there_without_a_header(sessions: Sessions, option: str) -> None:
    session = sessions.run("def test_passes(): pass", option)
    assert "bn-invariants" not in session.output
