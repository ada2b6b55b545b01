"""The stacks that faulthandler writes tell where in the user's code a rank is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pytest_bninvariants.frames import PACKAGE
from pytest_bninvariants.ranks.stacks import StackFrame, main_stack, stack_lines, whereabouts

WRITTEN = f"""\
Thread 0x00007f58e8ddfb80 (most recent call first):
  File "/lib/python3.11/threading.py", line 982 in run

Current thread 0x00007f58e8ddfb81 [python] (most recent call first):
  File "/v/site-packages/torch/distributed/distributed_c10d.py", line 3913 in all_reduce
  File "/v/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/home/me/test_it.py", line 31 in helper
  File "/home/me/test_it.py", line ??? in test_it
  File "/v/site-packages/_pytest/python.py", line 187 in pytest_pyfunc_call
  File "{PACKAGE}plugin/ranks/rank_main.py", line 60 in main
  File "<string>", line 11 in <module>
"""


def test_the_stack_of_the_thread_that_runs_the_test_counts() -> None:
    frames = main_stack(WRITTEN)
    assert frames[0].function == "all_reduce"
    assert frames[3] == StackFrame("/home/me/test_it.py", 0, "test_it")
    assert len(frames) == 7


def test_without_such_a_thread_the_one_that_wrote_counts_wherever_it_stands() -> None:
    written = (
        'Current thread 0x1 (most recent call first):\n  File "/home/me/a.py", line 3 in here\n\n'
        'Thread 0x2 (most recent call first):\n  File "/lib/socket.py", line 7 in accept\n'
    )
    assert main_stack(written) == [StackFrame("/home/me/a.py", 3, "here")]
    assert main_stack(written.replace("Current thread", "Thread"))[0].function == "accept"


def test_a_rank_is_in_the_library_function_that_the_users_line_calls() -> None:
    assert whereabouts(main_stack(WRITTEN)) == "in all_reduce at /home/me/test_it.py:31"
    assert (
        whereabouts([StackFrame("/home/me/test_it.py", 7, "test_it")]) == "at /home/me/test_it.py:7"
    )
    imports = [StackFrame("/v/site-packages/torch/__init__.py", 5, "<module>")]
    assert whereabouts(imports).startswith("in <module> at ")
    assert whereabouts([]) == ""


def test_pytests_own_frames_are_left_out_of_the_stack_that_is_shown() -> None:
    shown = stack_lines(main_stack(WRITTEN))
    assert shown[0] == "  /home/me/test_it.py:0 in test_it"
    assert shown[-1].endswith("in all_reduce")


SCRIPT = """\
import faulthandler, sys, threading

def wait():
    started.set()
    ended.wait()

def here():
    faulthandler.dump_traceback(sys.stdout, all_threads=True)

started, ended = threading.Event(), threading.Event()
waiting = threading.Thread(target=wait)
waiting.start()
started.wait()
here()
ended.set()
"""


def test_what_this_python_writes_can_be_read(tmp_path: Path) -> None:
    # in a process of its own: of more than a hundred threads, faulthandler leaves out the first
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    run = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    assert "in wait" in run.stdout
    assert main_stack(run.stdout) == [
        StackFrame(str(file), 8, "here"),
        StackFrame(str(file), 14, "<module>"),
    ]
