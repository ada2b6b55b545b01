"""`--bn-audit-xfails`: an old suite takes up the audit with what it knows of already."""

from __future__ import annotations

import pytest

from pytest_bninvariants.plugin.audit.expected_findings import ExpectedFindings
from tests.plugin.audit.audit_summary import summary_of
from tests.plugin.sessions import Sessions

SUITE = """
    @pytest.fixture
    def frozen_net():
        net = Net()
        net.bn1.requires_grad_(False)
        return net

    @pytest.mark.parametrize("size", [8, 16])
    def test_drifts(frozen_net, size):
        drift(frozen_net, size)

    def test_drifts_again(frozen_net):
        drift(frozen_net)

    def test_holds(frozen_net):
        hold(frozen_net)
"""
MENDED = SUITE.replace("drift(", "hold(")
ALL = [
    "test_it.py::test_drifts[8][frozen-moved-Net-bn1]: known when this file was written",
    "test_it.py::test_drifts[16][frozen-moved-Net-bn1]: known when this file was written",
    "test_it.py::test_drifts_again[frozen-moved-Net-bn1]: known when this file was written",
]


def write(sessions: Sessions, *lines: str) -> None:
    (sessions.folder / "known.txt").write_text("\n".join(["# what is known", "", *lines]))


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_what_a_run_writes_lets_the_next_one_pass(
    sessions: Sessions, workers: tuple[str, ...]
) -> None:
    session = sessions.run(SUITE, "--bn-audit", "--bn-audit-write-xfails=known.txt", *workers)
    assert "known.txt now expects the findings of this run" in session.output
    lines = (sessions.folder / "known.txt").read_text().splitlines()
    assert sorted(lines[1:]) == sorted(ALL)
    again = sessions.again("--bn-audit=fail", "--bn-audit-xfails=known.txt", *workers)
    assert set(again.outcomes.values()) == {"passed"}
    assert summary_of(again).endswith("found 3 findings as expected")


def test_a_finding_that_is_not_expected_fails_as_ever(sessions: Sessions) -> None:
    write(sessions, ALL[0], ALL[2])
    session = sessions.run(SUITE, "--bn-audit=fail", "--bn-audit-xfails=known.txt")
    assert [name for name, outcome in session.outcomes.items() if outcome == "failed"] == [
        "test_drifts[16]"
    ]


@pytest.mark.parametrize("mode", ["report", "fail"])
def test_a_finding_that_is_gone_fails_the_run_and_names_the_line(
    sessions: Sessions, mode: str
) -> None:
    write(sessions, *ALL)
    session = sessions.run(MENDED, f"--bn-audit={mode}", "--bn-audit-xfails=known.txt", exit_code=1)
    assert set(session.outcomes.values()) == {"passed"}
    assert (
        "known.txt:5: test_it.py::test_drifts_again[frozen-moved-Net-bn1] is no longer found"
        in (summary_of(session))
    )


def test_a_finding_that_is_gone_leaves_the_exit_code_of_a_run_that_was_stopped(
    sessions: Sessions,
) -> None:
    write(sessions, ALL[2])
    stops = """
    def test_stops():
        pytest.exit("stop", returncode=7)
"""
    sessions.run(MENDED + stops, "--bn-audit", "--bn-audit-xfails=known.txt", exit_code=7)


def test_one_test_that_still_has_a_finding_keeps_a_line_for_several(sessions: Sessions) -> None:
    write(sessions, "test_it.py::*[frozen-moved-Net-bn1]: known")
    source = SUITE.replace("drift(frozen_net)", "hold(frozen_net)")
    session = sessions.run(source, "--bn-audit=fail", "--bn-audit-xfails=known.txt")
    assert set(session.outcomes.values()) == {"passed"}


def test_a_test_that_does_not_run_keeps_its_line(sessions: Sessions) -> None:
    write(sessions, *ALL)
    session = sessions.run(
        MENDED, "--bn-audit", "--bn-audit-xfails=known.txt", "-k", "holds", exit_code=0
    )
    assert "no longer found" not in session.output


def test_a_test_that_fails_by_itself_keeps_its_line(sessions: Sessions) -> None:
    write(sessions, ALL[2])
    start = "def test_drifts_again(frozen_net):"
    source = SUITE.replace(start, f"{start}\n        raise ValueError")
    session = sessions.run(source, "--bn-audit", "--bn-audit-xfails=known.txt")
    assert "no longer found" not in session.output


def test_patterns_cover_many_tests_and_layers(sessions: Sessions) -> None:
    write(sessions, "test_it.py::*[frozen-*-Net-bn?]: the backbone drifts: mended in 2.0")
    session = sessions.run(SUITE, "--bn-audit=fail", "--bn-audit-xfails=known.txt")
    assert set(session.outcomes.values()) == {"passed"}


def test_writing_keeps_reasons_and_drops_what_is_gone(sessions: Sessions) -> None:
    reason = "the backbone drifts: mended in 2.0"
    kept = "test_it.py::test_drifts[8][frozen-moved-Net-bn1]: " + reason
    write(sessions, kept, "test_it.py::test_holds[frozen-moved-Net-bn1]: once")
    sessions.run(
        SUITE,
        "--bn-audit",
        "--bn-audit-xfails=known.txt",
        "--bn-audit-write-xfails=known.txt",
        exit_code=1,
    )
    lines = (sessions.folder / "known.txt").read_text().splitlines()
    assert lines[1:] == [kept, *ALL[1:]]


@pytest.mark.parametrize(
    "line",
    [
        "test_it.py::test_a[frozen-moved-Net-bn1]",
        "test_it.py::test_a[frozen-moved-Net-bn1]: ",
        "test_it.py::test_a: reason",
        "[frozen-moved-Net-bn1]: reason",
    ],
)
def test_a_malformed_line_is_a_usage_error(sessions: Sessions, line: str) -> None:
    write(sessions, line)
    sessions.pytester.makepyfile(test_it="def test_passes(): pass")
    result = sessions.bare("--bn-audit", "--bn-audit-xfails=known.txt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*known.txt:3: * is not a line 'TEST[[]RULE-MODEL-LAYER]: R*"])


def test_a_file_that_is_not_there_is_a_usage_error(sessions: Sessions) -> None:
    sessions.pytester.makepyfile(test_it="def test_passes(): pass")
    result = sessions.bare("--bn-audit", "--bn-audit-xfails=nowhere.txt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--bn-audit-xfails=nowhere.txt: No such file or directory"])


def test_no_file_expects_nothing() -> None:
    assert not ExpectedFindings.from_file(None).expects("test", "frozen-moved-Net-bn1")
