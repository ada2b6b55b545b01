"""The laws of layers that synchronise, on real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from pytest_bninvariants import GateError, assert_bn_conforms
from pytest_bninvariants.batchnorm.laws import LAWS
from pytest_bninvariants.batchnorm.laws.conform import check_law
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.batchnorm.trials.rank_trial import LawNotTried
from pytest_bninvariants.errors import LawBroken
from pytest_bninvariants.ranks.team import RankTeams
from tests.batchnorm.laws.fresh_process import ROOT, SnippetRunner
from tests.batchnorm.laws.known_bad import KNOWN_BAD
from tests.batchnorm.laws.known_bad.ranks import (
    AveragesGradients,
    SkipsEmptyBatches,
    SumsBiasGradients,
    SumsWeightGradients,
    SyncsInEval,
)
from tests.batchnorm.laws.synchronising import Synced, SyncedByScales

RANK_LAWS = [law.name for law in LAWS.values() if law.across_ranks]
PAIRS = [(law, layer) for law in RANK_LAWS for layer in KNOWN_BAD[law]]
MOST_LINES, MOST_CHARACTERS = 60, 6000  # of a report: a screen
HANGING = (SyncsInEval, SkipsEmptyBatches)


@pytest.fixture(scope="module")
def teams() -> Iterator[RankTeams]:
    with RankTeams(seconds=8) as teams:
        yield teams


@pytest.fixture(scope="module")
def snippets() -> Iterator[SnippetRunner]:
    runner = SnippetRunner()
    yield runner
    runner.close()


def subject(layer: type[nn.Module], **declared: Any) -> LayerUnderTest:
    return LayerUnderTest.from_factory(layer, rank="2d", declared=declared)


def find(
    law: str, layer: type[nn.Module], teams: RankTeams, examples: int = 100, **declared: Any
) -> LawBroken | None:
    """Return how a layer breaks a law, if in any dtype it does."""
    for dtype in LAWS[law].dtypes:
        try:
            check_law(
                LAWS[law], subject(layer, **declared), dtype=dtype, examples=examples, teams=teams
            )
        except LawBroken as error:
            return error
    return None


Find = Callable[[str, type[nn.Module]], LawBroken]


@pytest.fixture(scope="module")
def breach(teams: RankTeams) -> Find:
    """Find how a layer breaks a law on two ranks, once for all tests."""

    @cache
    def find_once(law: str, layer: type[nn.Module]) -> LawBroken:
        found = find(law, layer, teams, ranks=2)
        assert found is not None
        return found

    return find_once


@pytest.mark.parametrize(("law", "layer"), PAIRS, ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_layer_breaks_its_law_and_the_snippet_reproduces_it(
    law: str, layer: type[nn.Module], breach: Find, snippets: SnippetRunner
) -> None:
    found = breach(law, layer)
    assert found.law == law
    assert str(found).startswith(f"{layer.__name__} breaks the law {law}: ")
    assert len(str(found).splitlines()) < MOST_LINES, found
    assert len(str(found)) < MOST_CHARACTERS, found
    errors = snippets.run_on_ranks(found.snippet, 2)
    assert any(errors), found.snippet
    is_of_values = "expected = " in found.snippet
    assert any("AssertionError" in each for each in errors) or not is_of_values, errors
    healed = found.snippet.replace(
        f" import {layer.__name__}", f" import Synced as {layer.__name__}"
    )
    assert healed != found.snippet
    assert snippets.run_on_ranks(healed, 2) == ["", ""], healed


@pytest.mark.parametrize(("layer", "size"), [(SyncedByScales, 2), (Synced, 3)])
def test_right_layers_satisfy_the_laws(layer: type[nn.Module], size: int, teams: RankTeams) -> None:
    for law in RANK_LAWS:
        assert find(law, layer, teams, examples=40, ranks=size) is None


def test_torchrun_runs_a_snippet(breach: Find, tmp_path: Path) -> None:
    found = breach("synced_input_gradient", AveragesGradients)
    file = tmp_path / "snippet.py"
    file.write_text(found.snippet)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*command, str(file)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode
    assert "AssertionError" in ran.stderr


def test_a_rank_that_waits_for_ever_is_told_with_its_line_and_place(breach: Find) -> None:
    headline, *rest = str(breach("synced_eval_alone", SyncsInEval)).splitlines()
    assert "`y = layer(x)` on rank 1 was not done after 8 s; it waited in barrier at " in headline
    assert "known_bad/ranks.py:" in headline
    assert "  rank 0: came through" in rest


def test_a_rank_that_dies_is_told_before_what_follows_from_it(breach: Find) -> None:
    layer = next(each for each in KNOWN_BAD["synced_empty_rank"] if "Dies" in each.__name__)
    headline, *rest = str(breach("synced_empty_rank", layer)).splitlines()
    assert headline.endswith("rank 0 was killed by SIGFPE")
    assert any(line.startswith("  rank 1: ") for line in rest)


@pytest.mark.parametrize(
    ("law", "layer"),
    [("synced_weight_gradient", SumsWeightGradients), ("synced_bias_gradient", SumsBiasGradients)],
)
def test_a_sum_over_ranks_is_right_where_it_is_declared(
    law: str, layer: type[nn.Module], teams: RankTeams
) -> None:
    assert find(law, layer, teams, ranks=2, parameter_gradients="sum") is None
    assert find(law, layer, teams, ranks=2, parameter_gradients="mean")
    assert find(law, Synced, teams, ranks=2, parameter_gradients="sum")


@pytest.mark.parametrize("layer", [nn.SyncBatchNorm])
def test_torchs_own_is_not_tried_on_a_cpu_and_says_how_it_is(
    layer: type[nn.Module], teams: RankTeams
) -> None:
    for law in ("synced_output", "synced_running_var"):
        with pytest.raises(LawNotTried, match=r"no CPU path.*--bn-device=cuda"):
            find(law, layer, teams)
    with pytest.raises(GateError, match=r"synced_output, synced_counter: torch.nn.SyncBatchNorm"):
        assert_bn_conforms(layer, laws=["synced_output", "synced_counter"], examples=2)
    leaves_out = {"without": {"synced_*": "no GPU here"}}
    assert_bn_conforms(layer, laws=["counter", "synced_output"], examples=2, declared=leaves_out)


@pytest.mark.parametrize(
    ("layer", "declared", "ranks"),
    [
        (nn.BatchNorm2d, {}, 1),
        (nn.SyncBatchNorm, {}, 2),
        (Synced, {}, 2),
        (type("Mine", (Synced,), {}), {}, 2),
        (Synced, {"ranks": 1}, 1),
        (nn.BatchNorm2d, {"ranks": 4}, 4),
    ],
)
def test_a_layer_synchronises_if_its_name_or_its_author_says_so(
    layer: type[nn.Module], declared: dict[str, Any], ranks: int
) -> None:
    assert subject(layer, **declared).ranks == ranks
    applies = [name for name in RANK_LAWS if LAWS[name].applies_to(subject(layer, **declared))]
    assert applies == (RANK_LAWS if ranks > 1 else [])


def test_a_layer_that_other_processes_cannot_import_is_refused() -> None:
    class Local(Synced):
        pass

    with pytest.raises(ValueError, match=r"Local is tried on 2 ranks.*top level of a module"):
        assert_bn_conforms(Local, rank="2d", laws="synced_output")


def test_a_layer_whose_module_is_not_there_for_the_ranks_breaks_no_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Synced, "__module__", "absent_from_the_ranks")
    with pytest.raises(GateError, match=r"import Synced` on rank \d raised ModuleNotFoundError"):
        assert_bn_conforms(Synced, rank="2d", laws="synced_output")


def test_a_group_that_the_constructor_does_not_take_is_left_out_with_the_reason() -> None:
    law = LAWS["synced_process_group"]
    assert law.reason_to_leave_out(subject(Synced)) is None
    reason = law.reason_to_leave_out(subject(Synced, process_group="group"))
    assert reason == "its constructor takes no group"


class ConvertsNothing(Synced):
    def forward(self, x: Tensor) -> Tensor:
        return nn.BatchNorm2d.forward(self, x)  # type: ignore[arg-type]


def test_a_layer_that_does_not_synchronise_breaks_the_laws(teams: RankTeams) -> None:
    raises = {"synced_unequal_counts", "synced_empty_rank", "synced_single_values"}
    laws = [law for law in RANK_LAWS if law not in raises]  # ranks that raise are started anew
    broken = [law for law in laws if find(law, ConvertsNothing, teams, examples=10, ranks=2)]
    others = {"synced_counter", "synced_eval_alone", "synced_buffers"}
    local = {"synced_weight_gradient", "synced_bias_gradient", "synced_process_group"}
    assert set(laws) - set(broken) <= others | local
