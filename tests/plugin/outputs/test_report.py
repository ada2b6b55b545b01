"""`--bn-report=DIR`: a page and its data, whole under xdist, and safe whatever names are in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_bninvariants.reporting.page.run_report import run_report
from tests.plugin.sessions import Session, Sessions

SUITE = """
    def learn(net, steps, flip=None):
        optimizer = torch.optim.SGD(net.fc.parameters(), lr=0.1)
        for step in range(steps):
            if step == flip:
                net.train()
            net(batch()).square().mean().backward()
            optimizer.step()

    @pytest.mark.frozen_bn
    def test_drifts(model):
        learn(model, 6, flip=4)

    @pytest.mark.frozen_bn("bn1", trains="fc")
    def test_holds(model):
        learn(model, 2)

    def test_of_nothing():
        pass
"""
BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, BROWSERS), None)


def report_of(sessions: Sessions) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((sessions.folder / "out" / "report.json").read_text())
    return data


def page_of(sessions: Sessions) -> str:
    return (sessions.folder / "out" / "index.html").read_text()


def run(sessions: Sessions, *arguments: str, source: str = SUITE, **options: Any) -> Session:
    return sessions.run(source, "--bn-report=out", "-p", "no:html", *arguments, **options)


def test_the_report_has_what_held_and_what_broke_with_its_steps(sessions: Sessions) -> None:
    session = run(sessions)
    assert f"bn report: {sessions.folder / 'out' / 'index.html'}" in session.output
    data = report_of(sessions)
    assert data["schema"] == 1
    assert set(data["versions"]) == {"pytest-bninvariants", "torch", "Python"}
    broken, held = data["tests"]
    assert (broken["test"], held["test"]) == ("test_it.py::test_drifts", "test_it.py::test_holds")
    (failure,) = broken["failures"]
    history = failure["verdict"]["history"]
    assert history["by"] == "optimizer step"
    first = history["layers"][0]
    assert first["name"] == "bn1"
    assert [drift is None for drift in first["drifts"]] == [True] * 4 + [False] * 2
    assert history["marks"][0]["column"] == 4
    assert "Net.train(True) at test_it.py:" in history["marks"][0]["text"]
    assert [each["verdict"]["guard"] for each in held["verdicts"]] == [
        "frozen_bn('bn1', trains='fc')",
        "trains('fc')",
    ]
    assert all(each["verdict"]["history"] is None for each in held["verdicts"])
    page = page_of(sessions)
    assert "2 of 2 frozen BN layers changed: bn1, bn2" in page
    assert 'class="strip"' in page
    assert "Net.train(True) at test_it.py:" in page


def test_gitlab_reads_each_finding_at_the_line_that_caused_it(sessions: Sessions) -> None:
    run(sessions, "--bn-audit")
    issues = json.loads((sessions.folder / "out" / "gl-code-quality.json").read_text())
    broken, audited = issues
    source = (sessions.folder / "test_it.py").read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if "net.train()" in text)
    assert broken["location"] == {"path": "test_it.py", "lines": {"begin": line}}
    assert broken["severity"] == "major"
    assert broken["check_name"] == "mode-flip"
    assert broken["description"].startswith("test_it.py::test_drifts: 2 of 2 frozen BN layers")
    assert audited["check_name"] == "not-in-optimizer"
    assert audited["severity"] == "info"
    assert len({issue["fingerprint"] for issue in issues}) == 2


def test_a_failure_says_where_its_pictures_are(sessions: Sessions) -> None:
    run(sessions)
    result = sessions.bare("--bn-report=out", "-p", "no:html")
    result.stdout.fnmatch_lines(
        ["*bn report*", f"the pictures of this failure are in {sessions.folder}*index.html"]
    )


def test_workers_findings_are_in_one_report(sessions: Sessions) -> None:
    run(sessions)
    alone = report_of(sessions)
    run(sessions, "-n2")
    merged = report_of(sessions)
    assert sorted(t["test"] for t in merged["tests"]) == sorted(t["test"] for t in alone["tests"])
    assert 'class="strip"' in page_of(sessions)


def test_pictures_of_what_held_are_asked_for(sessions: Sessions) -> None:
    run(sessions, "--bn-report-pictures=all")
    held = report_of(sessions)["tests"][1]
    assert all(each["verdict"]["history"]["layers"] for each in held["verdicts"][:1])
    assert "What held, with pictures" in page_of(sessions)


def test_the_audit_and_the_kit_are_in_it(sessions: Sessions) -> None:
    sessions.pytester.makepyfile(
        test_it="""
        import torch

        def test_leaks():
            layer = torch.nn.BatchNorm1d(2).requires_grad_(False)
            layer(torch.randn(4, 2))
        """,
        broken="""
        import torch

        class Biased1d(torch.nn.BatchNorm1d):
            def forward(self, x):
                return super().forward(x) + 1
        """,
    )
    sessions.bare(
        "--pyargs",
        "pytest_bninvariants.conformance",
        "test_it.py",
        "--bn-report=out",
        "--bn-audit",
        "--bn-impl=torch.nn:BatchNorm1d",
        "--bn-impl=broken:Biased1d",
        "--bn-laws=training_output,running_mean",
        "--bn-dtype=float32",
        "--bn-examples=5",
    )
    data = report_of(sessions)
    laws = {(law["law"], law["layer"]): law for law in data["laws"]}
    assert {key: law["held"] for key, law in laws.items()} == {
        ("training_output", "BatchNorm1d"): True,
        ("running_mean", "BatchNorm1d"): True,
        ("training_output", "Biased1d"): False,
        ("running_mean", "Biased1d"): True,
    }
    assert 0 < laws["training_output", "BatchNorm1d"]["worst"] < 1
    assert laws["training_output", "Biased1d"]["worst"] is None
    page = page_of(sessions)
    assert 'class="laws"' in page
    assert "frozen-moved" in page
    assert "@pytest.mark.frozen_bn" in page


def test_a_run_that_guards_nothing_has_an_empty_report(sessions: Sessions) -> None:
    run(sessions, source="def test_passes(): pass")
    assert report_of(sessions)["tests"] == []
    assert "<!doctype html>" in page_of(sessions)


def test_crafted_names_are_text(sessions: Sessions) -> None:
    run(
        sessions,
        source="""
        @pytest.fixture
        def net(name):
            net = nn.Module()
            net.add_module(name, nn.BatchNorm1d(4))
            return net

        @pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<img src=x>"])
        @pytest.mark.frozen_bn
        def test_drifts(net, name):
            getattr(net, name)(batch())
        """,
    )
    page = page_of(sessions)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.running_mean" in page


def test_a_report_of_two_thousand_tests_is_small(sessions: Sessions) -> None:
    run(
        sessions,
        source="""
        @pytest.fixture
        def net():
            return nn.Sequential(*(nn.BatchNorm1d(16) for _ in range(20)))

        @pytest.mark.frozen_bn
        def test_drifts(net):
            for _ in range(300):
                net(torch.randn(4, 16))

        @pytest.mark.frozen_bn
        def test_holds(net):
            net.eval()(torch.randn(4, 16))
        """,
    )
    data = report_of(sessions)
    broken, held = data["tests"]
    data["tests"] = [broken] * 50 + [held] * 1950
    page = run_report(data)
    assert len(page) < 5_000_000
    assert page.count('class="strip"') > 3
    assert "The page has no room for more pictures" in page
    assert page.count("test_it.py::test_holds") == 1950


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bn-report="], "*--bn-report= is empty*"),
        (["--bn-report=test_it.py"], "*--bn-report=test_it.py is a file*"),
        (["--bn-report-pictures=all"], "*is for a report: give --bn-report=DIR*"),
        (["--bn-report=out", "--bn-report-pictures=x"], "*pictures=x: expected broken or all*"),
    ],
)
def test_wrong_options_are_usage_errors(
    sessions: Sessions, arguments: list[str], says: str
) -> None:
    sessions.pytester.makepyfile(test_it="def test_passes(): pass")
    result = sessions.bare(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([says])


def test_a_report_that_cannot_be_written_fails_the_run(sessions: Sessions) -> None:
    (sessions.folder / "taken").write_text("")
    sessions.pytester.makepyfile(test_it="def test_passes(): pass")
    result = sessions.bare("--bn-report=taken/out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["--bn-report=*taken*out: *"])


def test_pytest_html_shows_the_pictures_in_its_page(sessions: Sessions) -> None:
    pytest.importorskip("pytest_html")
    sessions.run(SUITE, "--bn-report=out", "--html=page.html", "--self-contained-html", alone=True)
    page = (sessions.folder / "page.html").read_text()
    assert "srcdoc" in page
    assert "strip" in page


def test_junit_has_the_verdict_without_its_steps(sessions: Sessions) -> None:
    run(sessions)
    assert "bn_verdict" in (sessions.folder / "junit.xml").read_text()
    assert "samples" not in (sessions.folder / "junit.xml").read_text()


def test_verbosely_guards_that_held_say_what_they_watched(sessions: Sessions) -> None:
    session = sessions.run(SUITE, "-v")
    lines = [line.strip() for line in session.lines]
    start = next(place for place, line in enumerate(lines) if "bn guards that held" in line)
    assert lines[start + 1 : start + 3] == [
        "test_it.py::test_holds",
        "frozen_bn('bn1', trains='fc') on Net (fixture 'model') holds: 1 frozen BN",
    ]
    assert "bn guards that held" not in sessions.again().output


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to open the page in")
def test_a_browser_shows_the_parts_of_the_page(sessions: Sessions, tmp_path: Path) -> None:
    run(sessions, "--bn-audit")
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    shown = subprocess.run(
        [
            BROWSER,
            *flags,
            "--disable-background-networking",
            "--disable-component-update",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            (sessions.folder / "out" / "index.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    for part in ('<svg class="strip"', '<svg class="lanes"', "<polyline", 'data-filters="held"'):
        assert part in shown, part
