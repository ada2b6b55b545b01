"""On GitHub, what failed is shown at the line that caused it, and in the step's summary."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from tests.plugin.audit.test_audit import FREEZE
from tests.plugin.sessions import NETS, Session, Sessions
from tests.reporting.test_github_text import read

SUITE = """
    @pytest.mark.frozen_bn("bn1")
    def test_drifts(model):
        drift(model)

    @pytest.mark.frozen_bn("bn1")
    def test_drifts_too(model):
        drift(model)

    @pytest.mark.frozen_bn
    def test_holds(model):
        hold(model)

    @pytest.mark.xfail
    @pytest.mark.frozen_bn
    def test_xfails(model):
        drift(model)

    def test_expects_it(model, frozen_bn):
        with pytest.raises(AssertionError), frozen_bn(model):
            drift(model)
        assert model is None, "own"
"""
TRAIN_LINE = NETS.splitlines().index("    model.train()")


@pytest.fixture
def summary(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = sessions.folder / "summary.md"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(sessions.folder.parent))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    return file


def commands(session: Session) -> list[tuple[str, str, int, str, str]]:
    return [
        read(line)
        for line in session.lines
        if line.startswith(("::error", "::warning", "::notice"))
    ]


def rows(summary: Path) -> list[list[str]]:
    lines = [line for line in summary.read_text().splitlines() if line.startswith("| <code>")]
    return [[html.unescape(re.sub("<.*?>", "", c)).strip() for c in x.split("|")] for x in lines]


@pytest.mark.parametrize("options", [(), ("-n2",)])
def test_a_failure_is_shown_at_its_cause_and_in_the_summary_once(
    sessions: Sessions, summary: Path, options: tuple[str, ...]
) -> None:
    session = sessions.run(SUITE, *options)
    ((level, file, line, title, message),) = commands(session)
    assert (level, file, line) == ("error", f"{sessions.folder.name}/nets.py", TRAIN_LINE)
    assert title == "1 of 1 frozen BN layer changed: bn1 (mode-flip)"
    assert f"put in training mode by Net.train(True) at {file}:{line} in drift" in message
    assert message.splitlines()[-2].startswith("fix: call .eval() on bn1")
    assert "test_it.py::test_drifts_too" in message
    text = summary.read_text()
    assert text.startswith("before\n### pytest-bninvariants\n")
    assert text.count("###") == 1
    assert "1 guard held, 2 failures" in text
    assert sorted(row[1] for row in rows(summary)) == [
        "test_it.py::test_drifts",
        "test_it.py::test_drifts_too",
    ]
    assert {row[4] for row in rows(summary)} == {f"{file}:{line}"}


@pytest.mark.parametrize("value", [None, "false", ""])
def test_elsewhere_there_is_nothing_of_it(
    sessions: Sessions, summary: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("GITHUB_ACTIONS")
    else:
        monkeypatch.setenv("GITHUB_ACTIONS", value)
    session = sessions.run(SUITE)
    assert commands(session) == []
    assert summary.read_text() == "before\n"


def test_where_no_guard_ran_there_is_nothing_either(sessions: Sessions, summary: Path) -> None:
    session = sessions.run("def test_passes(): pass")
    assert commands(session) == []
    assert summary.read_text() == "before\n"


def test_without_a_workspace_paths_are_relative_to_the_root(
    sessions: Sessions, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE")
    ((_, file, *_),) = commands(sessions.run(SUITE))
    assert file == "nets.py"


def test_ranks_that_fail_alike_and_runs_before_the_last_are_not_told_twice(
    sessions: Sessions, summary: Path
) -> None:
    session = sessions.run(
        """
        @pytest.mark.ranks(2)
        @pytest.mark.frozen_bn("bn1")
        def test_on_ranks(model):
            drift(model)

        drifts = iter([True])

        @pytest.mark.frozen_bn("bn2")
        def test_flaky(model):
            (drift if next(drifts, False) else hold)(model)

        @pytest.mark.frozen_bn("bn2")
        def test_always(model):
            drift(model)
        """,
        "--reruns=2",
    )
    told = [message.splitlines()[-1] for *_, message in commands(session)]
    assert told == ["in test_it.py::test_on_ranks", "in test_it.py::test_always"]
    assert [row[1] for row in rows(summary)] == [
        "test_it.py::test_on_ranks (rank 0, 1)",
        "test_it.py::test_always",
    ]


@pytest.mark.parametrize(
    ("option", "level"), [("--bn-audit", "warning"), ("--bn-audit=fail", "error")]
)
def test_what_the_audit_finds_is_shown_too(
    sessions: Sessions, summary: Path, option: str, level: str
) -> None:
    session = sessions.run(
        """
        def test_drifts(frozen_net):
            drift(frozen_net)

        def test_stuck(model):
            hold(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model(batch()).sum().backward()
            optimizer.step()
        """,
        option,
        before=FREEZE,
    )
    leak, stuck = commands(session)
    assert leak[:3] == (level, f"{sessions.folder.name}/nets.py", TRAIN_LINE)
    assert leak[3] == "1 of 1 frozen BN layer changed: bn1 (mode-flip)"
    assert stuck[0] == "notice"
    assert stuck[3] == "2 of 2 BN layers trained in eval: bn1, bn2 (stuck-in-eval)"
    assert "2 tests audited" in summary.read_text()
    guards = [row[2] for row in rows(summary)]
    assert guards == ["--bn-audit frozen-moved", "--bn-audit stuck-in-eval"]


def test_a_summary_that_cannot_be_written_is_told(
    sessions: Sessions, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary / "none"))
    session = sessions.run(SUITE)
    assert f"bninvariants: cannot write GITHUB_STEP_SUMMARY={summary / 'none'}" in session.output
