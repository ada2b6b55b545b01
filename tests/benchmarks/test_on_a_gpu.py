"""The script for a GPU runs on the CPU, tells failures, and goes on after them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.benchmarks.device.report import Report
from tests.benchmarks.on_a_gpu import PARTS, Part, main, run_part

pytest.importorskip("torchvision")
IN_ONE_PROCESS = sorted(name for name, each in PARTS.items() if "sessions" not in each.function)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what a part sets for its process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("settings_are_put_back")
@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_each_part_holds_on_the_cpu(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device=cpu", "--tiny", f"--part={name}"]) == 0
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    assert printed.strip()


def test_one_call_runs_parts_and_sums_them_up() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks.on_a_gpu"),
            *("--device=cpu", "--tiny", "--parts=suite,kit-without-cudnn"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "## Tests of guards on the device" in done.stdout
    assert "bn conformance: 2 checks held" in done.stdout
    assert done.stdout.rstrip().endswith("all held")


def test_all_parts_together_take_under_ten_minutes() -> None:
    assert sum(each.limit for each in PARTS.values()) < 570


def test_a_part_that_takes_too_long_fails(capfd: pytest.CaptureFixture[str]) -> None:
    slow = Part(title="Slow", function="effects:flips", limit=0.2)
    assert not run_part("flips", slow, "cpu", tiny=True)
    assert "flips: FAILED: not done in 0 s" in capfd.readouterr().out


def test_a_check_that_fails_is_printed_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("cpu", tiny=True)
    report.check("one is two", holds=False)
    assert report.failures == 1
    assert "**FAILED**: one is two" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--device=cuda:99"])
    assert ended.value.code == 2
    assert "--device=cuda:99" in capsys.readouterr().err
