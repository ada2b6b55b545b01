"""Ranks that die or wait for ever: the test ends, tells of each rank, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugin.sessions import Session, Sessions

Run = Callable[..., Session]


def test_a_rank_that_dies_is_named_with_its_end(run: Run) -> None:
    session = run(
        """
        import ctypes, signal

        @ranks
        def test_is_killed():
            if rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            meet()

        @ranks
        def test_crashes():
            if rank() == 0:
                ctypes.string_at(0)
            time.sleep(100)

        @ranks
        @pytest.mark.xfail(reason="no excuse for a crash")
        def test_exits():
            if rank() == 1:
                os._exit(0)
            time.sleep(100)
        """
    )
    assert session.outcomes == dict.fromkeys(session.outcomes, "failed")
    assert session.summaries["test_is_killed"] == "rank 1: was killed by SIGKILL"
    crashed = "rank 0: was killed by SIGSEGV in string_at at test_it.py:"
    assert session.texts["test_crashes"].startswith(crashed)
    told = "rank 1: exited with code 0 before its test had ended"
    assert session.texts["test_exits"].startswith(told)
    assert "in test_crashes ctypes.string_at(0)" in session.says("test_crashes")
    waited = "was stopped 5 s after rank 0 was killed by SIGSEGV; it waited at test_it.py:"
    assert waited in session.texts["test_crashes"]
    assert "failed: RuntimeError" in session.texts["test_is_killed"]


def test_ranks_that_wait_for_one_that_failed_are_stopped_and_tell_where(run: Run) -> None:
    start = time.monotonic()
    session = run(
        """
        @ranks
        def test_fails_on_one():
            if rank() == 1:
                raise ValueError("here")
            meet()

        @ranks
        def test_skips_on_one():
            if rank() == 1:
                pytest.skip("here")
            meet()

        @ranks
        @pytest.mark.xfail(raises=ValueError, strict=True)
        def test_xfails_on_one():
            if rank() == 0:
                raise ValueError("here")
            meet()
        """
    )
    assert time.monotonic() - start < 60
    assert session.outcomes == {
        "test_fails_on_one": "failed",
        "test_skips_on_one": "failed",
        "test_xfails_on_one": "xfailed",
    }
    text = session.texts["test_fails_on_one"]
    assert text.startswith("rank 1: ValueError: here\n")
    stopped = "was stopped 5 s after rank 1 failed in its call; it waited in all_reduce at test_it"
    assert stopped in text
    assert "distributed.all_reduce(torch.ones(1))" in text
    assert session.texts["test_skips_on_one"].startswith("rank 1: skipped this test (here), but")


def test_a_test_that_is_not_done_in_time_fails_and_tells_where_each_rank_is(run: Run) -> None:
    session = run(
        """
        @pytest.mark.ranks(3, timeout=3)
        @pytest.mark.xfail(reason="a hang is no failure that was expected")
        def test_waits():
            if rank() == 2:
                time.sleep(1000)
            elif rank() == 1:
                meet()

        @pytest.mark.ranks(2, timeout=3)
        def test_ends_never(request):
            request.addfinalizer(meet if rank() == 0 else int)
        """
    )
    assert session.outcomes == {"test_waits": "failed", "test_ends_never": "passed error"}
    text = session.texts["test_waits"]
    assert text.startswith("rank 1: was not done after 3 s; it waited in all_reduce at test_it.py:")
    assert "was not done after 3 s; it waited at test_it.py:" in text.split("- rank 2 -")[1]
    assert "passed" in text.split("- rank 0 -")[1].split("- rank 2 -")[0]
    told = "rank 0: was not done after 3 s; it waited in all_reduce at test_it.py:"
    assert session.texts["test_ends_never"].startswith(told)


def test_a_rank_that_does_not_come_to_the_test_says_why(run: Run) -> None:
    session = run(
        """
        if os.environ.get("RANK") == "1":
            import nothing_of_this_name

        @ranks
        def test_imports():
            pass
        """
    )
    assert session.outcomes == {"test_imports": "error"}
    text = session.texts["test_imports"]
    assert text.startswith("rank 1: cannot collect its test: ModuleNotFoundError: No module named ")
    assert "it waited for the others to reach the test" in text


def test_a_rank_that_ends_its_session_says_so(run: Run) -> None:
    session = run(
        """
        @ranks
        def test_exits():
            meet()
            pytest.exit("for good")
        """
    )
    assert session.outcomes == {"test_exits": "failed"}
    assert "ended its session: Exit for good" in session.summaries["test_exits"]


def test_a_report_that_cannot_be_sent_is_no_pass(run: Run) -> None:
    session = run(
        """
        @ranks
        def test_records(record_property):
            if rank() == 1:
                record_property("what", lambda: 0)
        """
    )
    assert session.outcomes == {"test_records": "failed"}
    assert session.texts["test_records"].startswith("rank 1: cannot send its report of call: ")


def test_processes_that_a_rank_started_end_with_it(
    run: Run, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = sessions.folder / "pids"
    monkeypatch.setenv("PIDS", str(pids))
    session = run(
        """
        import subprocess, sys

        def start():
            process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            with open(os.environ["PIDS"], "a") as file:
                print(process.pid, os.getpid(), file=file)

        @ranks
        def test_holds():
            start()

        @pytest.mark.ranks(2, timeout=2)
        def test_hangs():
            start()
            time.sleep(1000)
        """
    )
    assert session.outcomes == {"test_holds": "passed", "test_hangs": "failed"}
    found = pids.read_text().split()
    assert len(found) == 8
    wait_until_gone([int(pid) for pid in found])


PARENT = """
import os, time

import pytest
from torch import distributed


@pytest.mark.ranks(2)
def test_waits():
    with open(os.environ["PIDS"], "a") as file:
        print(os.getpid(), file=file)
    if distributed.get_rank() == 0:
        distributed.barrier()
    time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_session(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "test_it.py").write_text(PARENT)
    pids = tmp_path / "pids"
    pids.touch()
    session = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        env=os.environ | {"PIDS": str(pids)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        limit = time.monotonic() + 120
        while len(pids.read_text().split()) < 2 and time.monotonic() < limit:
            time.sleep(0.1)
        session.send_signal(number)
        code = session.wait(60)
    finally:
        session.kill()
    found = [int(pid) for pid in pids.read_text().split()]
    assert len(found) == 2
    assert code == (pytest.ExitCode.INTERRUPTED if number is signal.SIGINT else -number)
    wait_until_gone(found)


def wait_until_gone(pids: list[int]) -> None:
    """Fail unless processes end within some seconds."""
    limit = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert [pid for pid in pids if is_alive(pid)] == []


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
