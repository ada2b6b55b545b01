from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.laws import LAWS, choose_laws
from pytest_bninvariants.batchnorm.laws.conform import check_law
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.errors import LawBroken
from tests.batchnorm.laws.fresh_process import ROOT, SnippetRunner
from tests.batchnorm.laws.known_bad import KNOWN_BAD
from tests.batchnorm.laws.known_bad.bases import Composed

_ANOTHER_STATE = random.Random(1).getstate()
MOST_LINES, MOST_CHARACTERS = 60, 6000  # of a snippet: a screen
ON_ONE_PROCESS = [each.name for each in choose_laws() if not each.across_ranks]
PAIRS = [
    (law, layer)
    for law, layers in KNOWN_BAD.items()
    for layer in layers
    if not LAWS[law].across_ranks
]


@pytest.fixture(scope="module")
def snippets() -> Iterator[SnippetRunner]:
    runner = SnippetRunner()
    yield runner
    runner.close()


def find(law: str, layer: type[nn.Module], examples: int = 100) -> LawBroken | None:
    """Return how a layer breaks a law, if in any dtype it does."""
    for dtype in LAWS[law].dtypes:
        try:
            check_law(
                LAWS[law],
                LayerUnderTest.from_factory(layer, rank="2d"),
                dtype=dtype,
                examples=examples,
            )
        except LawBroken as error:
            return error
    return None


@pytest.mark.parametrize(("law", "layer"), PAIRS, ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_layer_breaks_its_law_and_the_snippet_reproduces_it(
    law: str, layer: type[nn.Module], snippets: SnippetRunner
) -> None:
    found = find(law, layer)
    assert found is not None
    assert found.law == law
    assert str(found).startswith(f"{layer.__name__} breaks the law {law}: ")
    check_snippet(found, layer, snippets)


def check_snippet(found: LawBroken, layer: type[nn.Module], snippets: SnippetRunner) -> None:
    """Check that code is short, fails for the report's reason, and passes on a right layer."""
    error = snippets.run(found.snippet)
    assert error, f"it runs through:\n{found.snippet}"
    cause = found.__cause__
    expected = "AssertionError" if cause is None else f"{type(cause).__name__}: {cause}"[:1000]
    assert error.startswith(expected), found.snippet
    if found.law not in ("frozen_output", "output_written_in_place"):  # torch refuses there, too
        name = layer.__name__
        healed = found.snippet.replace(
            f"from {layer.__module__} import {name}", f"from torch.nn import BatchNorm2d as {name}"
        )
        assert healed != found.snippet
        assert not snippets.run(healed), healed
    assert len(found.snippet.splitlines()) < MOST_LINES, found.snippet
    assert len(found.snippet) < MOST_CHARACTERS, found.snippet


@pytest.mark.parametrize("law", LAWS)
def test_each_law_has_a_layer_that_breaks_it(law: str) -> None:
    assert KNOWN_BAD.get(law)


@pytest.mark.parametrize("law", ON_ONE_PROCESS)
@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_torchs_layers_satisfy_the_laws(law: str, layer: type[nn.Module]) -> None:
    for dtype in LAWS[law].dtypes:
        check_law(LAWS[law], LayerUnderTest.from_factory(layer), dtype=dtype, examples=10)


@pytest.mark.parametrize("law", ON_ONE_PROCESS)
def test_a_layer_of_plain_operators_satisfies_the_laws(law: str) -> None:
    for dtype in LAWS[law].dtypes:
        check_law(
            LAWS[law],
            LayerUnderTest.from_factory(Composed, rank="2d"),
            dtype=dtype,
            examples=10,
        )


def _double(value: torch.dtype) -> torch.dtype:
    return torch.float64 if value is torch.float32 else torch.float32


@pytest.mark.parametrize(
    ("setting", "read", "write", "other"),
    [
        ("the default dtype", torch.get_default_dtype, torch.set_default_dtype, _double),
        ("the number of threads", torch.get_num_threads, torch.set_num_threads, lambda n: n + 1),
        ("the state of `random`", random.getstate, random.setstate, lambda _: _ANOTHER_STATE),
        (
            "whether algorithms are deterministic",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
            operator.not_,
        ),
        (
            "the precision of float32 products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            lambda value: "medium" if value == "highest" else "highest",
        ),
        *(
            (
                f"torch.backends.cudnn.{flag}",
                partial(getattr, torch.backends.cudnn, flag),
                partial(setattr, torch.backends.cudnn, flag),
                operator.not_,
            )
            for flag in ("enabled", "benchmark", "deterministic")
        ),
    ],
)
def test_a_setting_of_the_process_that_a_layer_changes_is_named_and_put_back(
    setting: str,
    read: Callable[[], Any],
    write: Callable[[Any], None],
    other: Callable[[Any], Any],
) -> None:
    class Meddles(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            write(other(read()))
            return super().forward(x)

    before = read()
    found = find("no_side_effects", Meddles, examples=1)
    assert f"a call changed {setting}" in str(found)
    assert read() == before


def test_a_setting_that_a_layer_has_changed_before_is_named() -> None:
    class Tunes(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            torch.backends.cudnn.benchmark = True
            return super().forward(x)

    with torch.backends.cudnn.flags(benchmark=False):
        Tunes(1)(torch.ones(2, 1, 1, 1))
        found = find("no_side_effects", Tunes, examples=1)
        assert "a call changed torch.backends.cudnn.benchmark" in str(found)


def test_the_call_that_puts_another_tensor_in_place_is_named() -> None:
    class Rebinds(nn.BatchNorm2d):
        def reset_running_stats(self) -> None:
            super().reset_running_stats()
            if self.track_running_stats:
                self.running_var = self.running_var.clone()

    told = str(find("reset", Rebinds, examples=1))
    assert "reset_running_stats() put another tensor in running_var's place" in told


def test_the_depth_of_volumes_is_swept() -> None:
    class ForgetsTheLastSlice(Composed):
        def mean(self, values: Tensor, dims: list[int]) -> Tensor:
            odd = values.dim() == 5 and values.shape[2] == 9
            return super().mean(values[:, :, :-1] if odd else values, dims)

        def _check_input_dim(self, input: Tensor) -> None:
            pass

    subject = LayerUnderTest.from_factory(ForgetsTheLastSlice, rank="3d")
    with pytest.raises(LawBroken, match="breaks the law spatial_sizes"):
        check_law(LAWS["spatial_sizes"], subject, examples=1)


def test_every_law_states_what_it_says() -> None:
    for law in LAWS.values():
        assert law.statement.endswith("."), law.name


@pytest.mark.parametrize("name", ["conformance-laws.md", "conformance-ranks.md"])
def test_the_page_lists_each_law_with_what_it_states(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    rows = re.findall(r"^\| `(\w+)`( \(frozen\))? \| (.+) \|$", page, re.MULTILINE)
    listed = {name: (bool(frozen), statement) for name, frozen, statement in rows}
    assert len(listed) == len(rows)
    on_ranks = name == "conformance-ranks.md"
    laws = [law for law in LAWS.values() if law.across_ranks == on_ranks]
    assert listed == {law.name: (law.frozen, law.statement) for law in laws}


def test_the_page_of_mistakes_names_the_law_that_catches_each() -> None:
    page = (ROOT / "docs" / "kernel-mistakes.md").read_text()
    rows = re.findall(r"\| `(\w+)` \| `(\w+)` \|$", page, re.MULTILINE)
    caught = {(law, layer.__name__) for law, layer in PAIRS}
    assert rows
    assert [row for row in rows if row not in caught] == []
    tables, _, _ = page.partition("## What no law catches")
    assert len(rows) == sum(line.startswith("| ") for line in tables.splitlines()) - 5  # headings


def test_a_pattern_without_a_law_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'nonsense' matches no law"):
        choose_laws(["nonsense"])
