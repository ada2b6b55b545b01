"""Under torchrun each rank runs its own session; a marked test uses the ranks that are there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.plugin.sessions import HEADER, NETS

BEFORE = """
import os
import time

from hypothesis import given, strategies as st
from torch import distributed

ranks = pytest.mark.ranks(2)
RANK = int(os.environ["RANK"])

@pytest.fixture
def model():
    return Net()
"""


def torchrun(folder: Path, source: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a session on each of two ranks."""
    (folder / "nets.py").write_text(NETS)
    (folder / "test_it.py").write_text(HEADER + BEFORE + source)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml", *args]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def outcomes(folder: Path, file: str) -> dict[str, str]:
    """Return each test's outcome in a report."""
    found = {}
    for case in ElementTree.parse(folder / file).iterfind(".//testcase"):
        said = [child.tag for child in case if child.tag != "properties"]
        found[case.attrib["name"]] = said[0] if said else "passed"
    return found


def test_ranks_that_pass_leave_the_terminal_to_rank_0(tmp_path: Path) -> None:
    done = torchrun(
        tmp_path,
        """
@ranks
@pytest.mark.frozen_bn
def test_holds(model):
    hold(model)
    total = torch.ones(1)
    distributed.all_reduce(total)
    assert total == 2

@ranks
@given(st.integers(0, 1000))
def test_draws_the_same(number):
    other = torch.tensor([float(number)])
    distributed.broadcast(other, 0)
    assert other == number

def test_plain():
    assert not distributed.is_initialized()
""",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("test session starts") == done.stdout.count("3 passed") == 1
    assert "rank 1" not in done.stdout
    for file in ("report.xml", "report.rank1.xml"):
        assert set(outcomes(tmp_path, file).values()) == {"passed"}


def test_ranks_that_fail_say_so_and_end_the_run_with_an_error(tmp_path: Path) -> None:
    done = torchrun(
        tmp_path,
        """
@ranks
@pytest.mark.frozen_bn
def test_drifts_on_one(model):
    (drift if RANK else hold)(model)

@pytest.mark.ranks(2, timeout=10)
def test_waits_for_one_that_failed():
    if RANK == 1:
        raise ValueError("here")
    distributed.barrier()

@pytest.mark.ranks(3)
def test_other_number():
    pass

@pytest.mark.ranks(2, timeout=3)
@pytest.mark.skipif(RANK == 1, reason="not on this rank")
def test_one_does_not_come():
    pass

def test_takes_longer_on_rank_0():
    time.sleep(3 * (1 - RANK))
""",
    )
    assert done.returncode != 0
    own = [line for line in done.stdout.splitlines() if line.startswith("rank 1: ")]
    text = "\n".join(own)
    assert "rank 1: E   2 of 2 frozen BN layers changed: bn1, bn2 (mode-flip)" in own
    assert "asks for 3 ranks, and this run has 2 (WORLD_SIZE=2 in the environment)" in text
    assert "test session starts" not in text
    assert outcomes(tmp_path, "report.xml") == {
        "test_drifts_on_one": "passed",
        "test_waits_for_one_that_failed": "failure",
        "test_other_number": "error",
        "test_one_does_not_come": "error",
        "test_takes_longer_on_rank_0": "passed",
    }
    assert outcomes(tmp_path, "report.rank1.xml") == {
        "test_drifts_on_one": "failure",
        "test_waits_for_one_that_failed": "failure",
        "test_other_number": "error",
        "test_one_does_not_come": "skipped",
        "test_takes_longer_on_rank_0": "passed",
    }
    assert "rank 1 did not reach this test within 3 s" in done.stdout


def test_a_test_that_never_ends_ends_the_run_with_its_stack(tmp_path: Path) -> None:
    done = torchrun(
        tmp_path,
        """
@pytest.mark.ranks(2, timeout=10)  # within which both must come to it
def test_never_ends():
    while RANK == 1:
        time.sleep(0.1)
""",
    )
    assert done.returncode != 0
    assert "in test_never_ends" in done.stderr


@pytest.mark.parametrize("options", [["-n2"]])
def test_xdist_is_refused_under_a_launcher(tmp_path: Path, options: list[str]) -> None:
    source = "\n@ranks\ndef test_it():\n    pass\n"
    done = torchrun(tmp_path, source, *options)
    assert done.returncode != 0
    assert "@pytest.mark.ranks(2) under a launcher and xdist" in done.stdout
