"""A session's outputs are whole at any width and verbosity, however modules are called."""

from __future__ import annotations

import json

import pytest

from tests.plugin.sessions import Sessions
from tests.reporting.test_any_names import CRAFTED

WRITABLE = [name.replace("\ud800", "\ufffd") for name in CRAFTED]  # a test's own id goes to a file
SUITE = f"""
    NAMES = {WRITABLE!r}

    class Crafted(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.rows = nn.ModuleDict({{name: nn.BatchNorm1d(4)}}).requires_grad_(False)
            self.name = name

        def forward(self, x):
            return self.rows[self.name](x)

    @pytest.fixture(params=NAMES, ids=map(str, range(len(NAMES))))
    def crafted(request):
        return Crafted(request.param)

    @pytest.mark.frozen_bn
    def test_drifts(crafted):
        drift(crafted)

    def test_is_audited(crafted):
        drift(crafted)

    @pytest.mark.trains("rows.missing")
    def test_is_refused(crafted):
        drift(crafted)

    @pytest.mark.trains("rows.\\x1b[31m\\u202e")
    def test_is_refused_by_its_marker(crafted):
        drift(crafted)
"""


@pytest.mark.parametrize(
    ("columns", "options"),
    [("30", ("-q",)), ("80", ("-v", "--bn-trace")), ("250", ("-vv", "--tb=short"))],
)
def test_names_neither_break_a_line_nor_steer_a_terminal(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, columns: str, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(sessions.folder / "summary.md"))
    session = sessions.run(
        SUITE, "--bn-audit", "--bn-report=out", "-p", "no:html", *options, exit_code=1
    )
    assert len(session.outcomes) == 4 * len(WRITABLE)
    for name, text in session.texts.items():
        strange = {each for each in text if not each.isprintable()} - {"\n"}
        assert not strange, f"{name}: {strange}"
    data = json.loads((sessions.folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert len(data["tests"]) == len(session.outcomes)
    for file in ("out/index.html", "summary.md"):
        page = (sessions.folder / file).read_text(encoding="utf-8")
        assert not {each for each in page if not each.isprintable()} - {"\n", "\t"}
