"""`python -m pytest_bninvariants drift` over real checkpoints, and over what is none."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pytest_bninvariants.__main__ import main
from tests.engine import Net

Drift = Callable[..., "Run"]


@dataclass(frozen=True)
class Run:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def drift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Drift:
    """Run the command in a folder of its own, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Run:
        monkeypatch.setattr(sys, "argv", ["pytest_bninvariants", "drift", *arguments])
        status = main()
        return Run(status, *capsys.readouterr())

    return run


def test_python_runs_it(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest_bninvariants", "drift", "0.pt", "1.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.endswith("drift: 0.pt: No such file or directory\n")


def states(count: int) -> list[dict[str, torch.Tensor]]:
    """Return the state of a model after each of some forwards; its neck stays."""
    torch.manual_seed(0)
    model = Net()
    model.neck.eval()
    found = []
    for _ in range(count):
        found.append({name: each.clone() for name, each in model.state_dict().items()})
        model(torch.randn(4, 2, 5))
    return found


def wrapped(state: dict[str, torch.Tensor]) -> dict[str, object]:
    prefixed = {f"module.{name}": each for name, each in state.items()}
    return {"epoch": 1, "state_dict": prefixed, "optimizer": {"state": {}, "param_groups": [{}]}}


def row(text: str, layer: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [layer])
    return line.split()


def test_a_table_says_how_far_each_layer_drifted(tmp_path: Path, drift: Drift) -> None:
    for number, state in enumerate(states(3)):
        torch.save(wrapped(state), tmp_path / f"{number}.pt")
    run = drift("0.pt", "1.pt", "2.pt")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("2 BN layers in 3 checkpoints, 0.pt to 2.pt\n")
    total, largest = map(float, row(run.stdout, "backbone.bn")[1:3])
    assert 0 < largest <= total
    assert row(run.stdout, "neck")[1] == "same"


@pytest.mark.parametrize(
    ("shifts", "between"), [((0, 1, 9), "1.pt, 2.pt"), ((0, 8, 9), "0.pt, 1.pt")]
)
def test_the_largest_drift_is_told_with_the_checkpoints_around_it(
    tmp_path: Path, drift: Drift, shifts: tuple[int, ...], between: str
) -> None:
    for number, shift in enumerate(shifts):
        layer = nn.BatchNorm1d(2)
        layer.running_mean.fill_(shift)
        torch.save(
            {f"bn.{name}": each for name, each in layer.state_dict().items()}, f"{number}.pt"
        )
    run = drift("0.pt", "1.pt", "2.pt")
    assert between in run.stdout
    total, largest = map(float, row(run.stdout, "bn")[1:3])
    assert largest == pytest.approx(32)  # a shift by 8 standard deviations: 8 * 8 / 2 nats
    assert total == pytest.approx(32.5)


def test_each_format_gives_the_same_table(tmp_path: Path, drift: Drift) -> None:
    for number, state in enumerate(states(2)):
        torch.save(state, tmp_path / f"{number}.pt")
        torch.save(state, tmp_path / f"{number}.pth", _use_new_zipfile_serialization=False)
        save_file(state, tmp_path / f"{number}.safetensors")
    runs = [drift(f"0.{kind}", f"1.{kind}") for kind in ("pt", "pth", "safetensors")]
    rows = [row(run.stdout, "backbone.bn")[1] for run in runs]
    assert len(set(rows)) == 1, [run.stderr for run in runs]


def test_a_csv_file_has_each_layer_at_each_checkpoint(tmp_path: Path, drift: Drift) -> None:
    found = states(3)
    for number, state in enumerate(found):
        torch.save(state, tmp_path / f"{number}.pt")
    assert drift("0.pt", "1.pt", "2.pt", "--csv", "out.csv").returncode == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert [each["checkpoint"] for each in rows[:3]] == ["0.pt", "1.pt", "2.pt"]
    assert rows[0]["drift"] == ""
    assert float(rows[2]["mean_high"]) == pytest.approx(
        float(found[2]["backbone.bn.running_mean"].max()), rel=1e-3
    )
    assert [float(each["drift"]) for each in rows[4:]] == [0, 0]


def test_a_page_has_the_strip_and_the_curves(tmp_path: Path, drift: Drift) -> None:
    for number, state in enumerate(states(2)):
        torch.save(state, tmp_path / f"{number}.pt")
    assert drift("0.pt", "1.pt", "--html", "out.html").returncode == 0
    page = (tmp_path / "out.html").read_text()
    assert page.startswith("<!doctype html>")
    assert 'class="strip"' in page
    assert "Bit for bit the same: neck" in page


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, drift: Drift) -> None:
    for number, state in enumerate(states(2)):
        (tmp_path / f"epoch{number}").mkdir()
        torch.save(state, tmp_path / f"epoch{number}" / "model.pt")
    run = drift("epoch0/model.pt", "epoch1/model.pt")
    assert "epoch0/model.pt to epoch1/model.pt" in run.stdout


def test_an_average_beside_the_model_has_names_of_its_own(tmp_path: Path, drift: Drift) -> None:
    for number, state in enumerate(states(2)):
        torch.save({"model": state, "ema": state}, tmp_path / f"{number}.pt")
    run = drift("0.pt", "1.pt")
    assert row(run.stdout, "model.backbone.bn")
    assert row(run.stdout, "ema.backbone.bn")


class Dangerous:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, drift: Drift) -> None:
    torch.save(states(1)[0], tmp_path / "0.pt")
    torch.save({"model": Dangerous()}, tmp_path / "1.pt")
    run = drift("0.pt", "1.pt")
    assert run.returncode == 2
    assert "1.pt: to read it would run code of " in run.stderr
    assert "mkdir" in run.stderr
    assert not (tmp_path / "executed").exists()


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path, drift: Drift) -> None:
    torch.save(states(1)[0], tmp_path / "good.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "without.pt")
    torch.save(nn.BatchNorm1d(7).state_dict(), tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "key.pt").write_text("hello")  # torch's reader takes h for a key
    torch.save(nn.BatchNorm1d(2, device="meta").state_dict(), tmp_path / "meta.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    for file, says in (
        ("absent.pt", "absent.pt: No such file or directory"),
        ("text.pt", "text.pt: it cannot be read as a checkpoint"),
        ("key.pt", "key.pt: it cannot be read as a checkpoint\n"),
        ("empty.pt", "empty.pt: it cannot be read as a checkpoint"),
        (
            "folder",
            "folder: it is a folder: give files written by torch.save or safetensors; dcp_to",
        ),
        ("meta.pt", "meta.pt: the statistics of the model are on the meta device, and have no"),
        ("text.safetensors", "text.safetensors: it cannot be read as a checkpoint"),
        ("without.pt", "without.pt: no BN layer has running_mean and running_var in it"),
        ("other.pt", "has the same number of channels in all of these checkpoints"),
    ):
        run = drift("good.pt", file)
        assert (run.returncode, run.stdout) == (2, "")
        assert says in run.stderr
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize("eps", ["-1", "-1e-9", "nan", "inf"])
def test_an_eps_below_0_is_refused(eps: str, drift: Drift) -> None:
    run = drift("0.pt", "1.pt", f"--eps={eps}")
    assert run.returncode == 2
    assert "is not a number >= 0" in run.stderr


def test_one_checkpoint_is_refused(tmp_path: Path, drift: Drift) -> None:
    torch.save(states(1)[0], tmp_path / "0.pt")
    assert "give two or more files" in drift("0.pt").stderr
