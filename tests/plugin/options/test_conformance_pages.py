"""What the author of a layer reads first: of one cause, a page."""

from __future__ import annotations

import re

import pytest

from tests.plugin.options.conformance_kit import ARGS, KIT

OFF = """
from torch import nn


class Rectified2d(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Doubled2d(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


class OneLaw2d(nn.BatchNorm2d):
    def reset_running_stats(self):
        super().reset_running_stats()
        if self.track_running_stats and hasattr(self, "count"):
            self.running_mean.fill_(1)
        self.count = 0
"""
PAGE = 80
TOLD = re.compile(
    r"^bn conformance: (\w+) breaks (\d+) laws, .*; -v shows also (.*)$", re.MULTILINE
)


@pytest.fixture(autouse=True)
def layers(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    for name in ("CI", "BUILD_NUMBER", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(off=OFF)


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess(
        *ARGS, *KIT, "--bn-examples=2", "--bn-dtype=float32", *args, timeout=240
    )


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "two_workers"])
def test_a_layer_that_breaks_many_laws_is_told_on_a_page_that_begins_with_the_simplest(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    result = run(pytester, "-q", "--bn-impl=off:Rectified2d", *workers)
    text = result.stdout.str()
    failed = result.parseoutcomes()["failed"]
    assert failed > 20
    assert len(result.outlines) < PAGE
    shown = re.findall(r"^Rectified2d breaks the law (\w+)", text, re.MULTILINE)
    assert shown[:2] == ["training_output", "eval_output"]
    told = TOLD.search(text)
    assert told is not None
    assert (told[1], int(told[2])) == ("Rectified2d", failed)
    assert set(shown).isdisjoint(told[3].split(", "))
    assert len({*shown, *told[3].split(", ")}) == failed


def test_each_layer_has_a_page(pytester: pytest.Pytester) -> None:
    impls = ("--bn-impl=off:Rectified2d", "--bn-impl=off:Doubled2d")
    text = run(pytester, "-q", *impls, "--bn-laws=*output*,*gradient*,layouts").stdout.str()
    assert [each[0] for each in TOLD.findall(text)] == ["Rectified2d", "Doubled2d"]
    assert "Doubled2d breaks the law training_output" in text


def test_verbose_shows_each_report(pytester: pytest.Pytester) -> None:
    laws = "--bn-laws=*output*,*gradient*,layouts"
    result = run(pytester, "-v", "--bn-impl=off:Rectified2d", laws)
    text = result.stdout.str()
    assert not TOLD.search(text)
    failed = result.parseoutcomes()["failed"]
    assert len(re.findall(r"^Rectified2d breaks the law", text, re.MULTILINE)) == failed > 8


def test_what_fits_on_a_page_is_shown_whole(pytester: pytest.Pytester) -> None:
    text = run(pytester, "-q", "--bn-impl=off:OneLaw2d", "--bn-laws=reset,counter").stdout.str()
    assert "OneLaw2d breaks the law reset" in text
    assert not TOLD.search(text)
