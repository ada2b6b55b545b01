"""The survey of public layers: what it tells, and that its page and its list agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_bninvariants.batchnorm.laws import LAWS
from pytest_bninvariants.conformance.survey import __main__ as command
from pytest_bninvariants.conformance.survey.entries import Judgement, PublicLayer
from pytest_bninvariants.conformance.survey.findings import unexpected_findings
from pytest_bninvariants.conformance.survey.page import render_pages
from pytest_bninvariants.conformance.survey.public_layers import PUBLIC_LAYERS
from pytest_bninvariants.conformance.survey.run import BrokenLaw, SurveyedLayer, survey_layer

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "public-layers"
OFF = Judgement(laws="running_var momentum", verdict="on purpose", why="it keeps the biased one.")
LAYER = PublicLayer(
    name="torch.nn.BatchNorm2d", package="torch", spec="torch.nn:BatchNorm2d", judgements=(OFF,)
)
BROKEN = BrokenLaw("momentum", ("float32",), "layer.running_var is off", "import torch")
RESULT = SurveyedLayer(layer=LAYER, version="1.0", held=("counter",), cases=3, broken=(BROKEN,))


def survey(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest_bninvariants.conformance.survey", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )


def test_a_layer_does_what_the_list_says() -> None:
    done = survey("torch.nn.Lazy*", "--laws=construction,counter", "--effort=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 layers surveyed; 0 unexpected findings" in done.stdout
    assert re.search(
        r"LazyBatchNorm2d \(torch .*\): 1 laws held on 4 cases, 1 did not", done.stdout
    )


def test_a_layer_that_the_list_does_not_tell_of_is_found() -> None:
    laws = ("running_mean", "running_var", "momentum")
    off = replace(LAYER, spec="tests.conformance.off_layers:Biased2d", laws="running_*")
    judged = survey_layer(off, laws, 3)
    assert list(unexpected_findings([judged], laws)) == []
    (told,) = unexpected_findings([replace(judged, layer=replace(off, judgements=()))], laws)
    assert told.startswith("torch.nn.BatchNorm2d breaks running_var, which no judgement covers: ")
    right = survey_layer(replace(off, spec="torch.nn:BatchNorm2d"), laws, 3)
    (told,) = unexpected_findings([right], laws)
    assert told.startswith("torch.nn.BatchNorm2d no longer breaks running_var momentum, judged: ")
    assert list(unexpected_findings([right], {"running_var"})) == []


def test_what_is_found_makes_the_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = replace(OFF, laws="counter")
    off = replace(LAYER, spec="tests.conformance.off_layers:Biased2d", judgements=(gone,))
    monkeypatch.setattr(command, "PUBLIC_LAYERS", (off,))
    assert command.main(["--laws=running_var,counter", "--effort=3"]) == 1
    said = capsys.readouterr().out
    assert "1 of 1 layers surveyed; 2 unexpected findings" in said
    assert "BatchNorm2d no longer breaks counter, judged: it keeps the biased one." in said
    assert "BatchNorm2d breaks running_var, which no judgement covers: " in said


def test_a_layer_with_frozen_statistics_is_held_to_the_laws_of_such_layers() -> None:
    frozen = replace(LAYER, laws="frozen", judgements=())
    result = survey_layer(frozen, ("running_var", "eval_batch_mates", "frozen_output"), 1)
    assert result.held == ("eval_batch_mates",)
    assert [each.law for each in result.broken] == ["frozen_output"]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (RESULT, []),
        (replace(RESULT, version=None, broken=()), []),
        (replace(RESULT, error="no class"), ["torch.nn.BatchNorm2d: not judged: no class"]),
    ],
)
def test_what_is_unexpected_is_told(result: SurveyedLayer, told: list[str]) -> None:
    assert list(unexpected_findings([result], LAWS)) == told


def test_a_spec_that_cannot_be_read_is_an_error_of_the_layer() -> None:
    result = survey_layer(replace(LAYER, spec="torch.nn:BatchNorm9d"), LAWS, 1)
    assert "torch.nn has no BatchNorm9d" in result.error


def test_a_package_that_is_missing_is_told_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = replace(LAYER, name="nowhere.Norm", package="no-such-distribution")
    monkeypatch.setattr(command, "PUBLIC_LAYERS", (missing,))
    assert command.main(["--effort=1", f"--write={tmp_path / 'pages'}"]) == 1
    said = capsys.readouterr().out
    assert "nowhere.Norm: no-such-distribution is not installed" in said
    assert "0 of 1 layers surveyed" in said
    assert "pip install 'pytest-bninvariants[survey]' installs them" in said
    assert not (tmp_path / "pages").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("nowhere.*", "'nowhere.*' matches no layer; there are torch.nn"),
        ("--effort=some", "some"),
        ("--laws=counter,nowhere", "'nowhere' matches no law; there are "),
        ("--laws=synced_*", "--laws=synced_*: these run on ranks, and a survey"),
        ("--laws=counter --write=pages", "--write goes without --laws: "),
    ],
)
def test_a_bad_argument_is_told(
    arguments: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments.split()) == 2
    assert told in capsys.readouterr().err


def test_the_pages_have_each_deviation_with_its_reason_and_its_smallest_case() -> None:
    pages = render_pages([RESULT], 6)
    assert set(pages) == {"index.md", "torch.md"}
    assert (
        "| [`torch.nn.BatchNorm2d`](torch.md#torchnnbatchnorm2d) | torch 1.0 | 1 | 3 | 1 | on pur"
        in pages["index.md"]
    )
    page = pages["torch.md"]
    assert "**on purpose**: it keeps the biased one. Broken: `momentum`." in page
    assert "The smallest case, of `momentum`: layer.running_var is off\n\n    import torch" in page


def test_the_pages_replace_those_of_an_earlier_run_and_no_file_of_somebody_elses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in render_pages([RESULT], 6).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.md").write_text("# Notes\n\nof somebody")
    monkeypatch.setattr(command, "PUBLIC_LAYERS", (replace(LAYER, laws="counter", judgements=()),))
    assert command.main(["--effort=1", f"--write={tmp_path}"]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"index.md", "notes.md"}


@pytest.mark.parametrize("layer", PUBLIC_LAYERS, ids=lambda layer: layer.name)
def test_the_pages_in_docs_are_of_the_list(layer: PublicLayer) -> None:
    assert f"`{layer.name}`" in (PAGES / "index.md").read_text(encoding="utf-8")
    for judgement in layer.judgements:
        page = (PAGES / f"{layer.package}.md").read_text(encoding="utf-8")
        assert f"**{judgement.verdict}**: {judgement.why}" in page
        assert [law for law in judgement.laws.split() if law not in LAWS] == []


def test_the_extra_installs_each_package_of_the_list() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {each.partition(">")[0] for each in extras["optional-dependencies"]["survey"]}
    assert {layer.package for layer in PUBLIC_LAYERS} - {"torch"} == listed


def test_the_list_is_as_wide_as_it_says() -> None:
    assert len(PUBLIC_LAYERS) >= 15
    assert len({layer.package for layer in PUBLIC_LAYERS}) >= 8
