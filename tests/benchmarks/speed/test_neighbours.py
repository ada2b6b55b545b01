"""The benchmark beside busy processes starts them, and leaves none behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.benchmarks.speed.neighbours import NEIGHBOURS, neighbours


def test_neighbours_run_meanwhile_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def note(arguments: list[str]) -> subprocess.Popen[bytes]:
        started.append(start(arguments))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", note)
    with neighbours("while True: pass"):
        assert [each.poll() for each in started] == [None, None]
    assert all(each.poll() is not None for each in started)


def test_nobody_runs_without_code() -> None:
    with neighbours(NEIGHBOURS["nobody"]):
        pass


@pytest.mark.parametrize("name", [name for name, code in NEIGHBOURS.items() if code])
def test_what_neighbours_run_does_not_end_by_itself(name: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOURS[name]])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=8)
    finally:
        process.kill()
        process.wait()
