"""What the benchmark of the bounds measures, in little."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.benchmarks.accuracy.bounds import tables
from tests.benchmarks.accuracy.checkers import caught, checkers
from tests.benchmarks.accuracy.comparisons import (
    CORRECT,
    PRECISIONS,
    RESULTS,
    Comparison,
    comparisons,
    drawn,
    layers,
    over_tolerance,
    results,
    truth,
)
from tests.benchmarks.accuracy.defects import DEFECTS

PAGE = Path(__file__).parents[3] / "docs" / "bounds-measured.md"


@pytest.fixture(scope="module")
def compared() -> list[Comparison]:
    return list(comparisons(["float32"], 40))


@pytest.fixture(scope="module")
def correct(compared: list[Comparison]) -> list[Comparison]:
    return [each for each in compared if each.layer in CORRECT]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_cases_of_a_benchmark_are_the_same_each_time(precision: str) -> None:
    cases = drawn(precision, 20)
    assert len(cases) == 20
    assert cases == drawn(precision, 20)


def test_every_layer_is_compared_in_every_result(compared: list[Comparison]) -> None:
    found = {(each.case, each.layer, each.result) for each in compared}
    assert len(found) == len(compared) == 40 * (len(CORRECT) + len(DEFECTS)) * len(RESULTS)


def test_the_bounds_reject_no_correct_layer(correct: list[Comparison]) -> None:
    assert max(each.bounds for each in correct) <= 1


def test_the_bounds_catch_each_defect_in_float32(compared: list[Comparison]) -> None:
    found = caught(compared, checkers(compared)["bounds"])
    assert {defect for _, defect in found} == set(DEFECTS)


def test_assert_close_rejects_correct_layers_where_kappa_is_above_10(
    correct: list[Comparison],
) -> None:
    rejected = {each.layer for each in correct if each.close > 1 and not each.well}
    assert rejected == set(CORRECT)


def test_a_loosened_assert_close_rejects_no_correct_layer(
    compared: list[Comparison], correct: list[Comparison]
) -> None:
    loosened = checkers(compared)["loosened"]
    assert not any(map(loosened, correct))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_fixed_tolerance_is_that_of_assert_close(precision: str) -> None:
    for case in drawn(precision, 8):
        expected = truth(case)
        for layer in layers(case).values():
            for name, got in results(layer, case).items():
                value = expected[name].value
                try:
                    torch.testing.assert_close(got, value.to(got.dtype))
                except AssertionError:
                    assert over_tolerance(got, value) > 1
                else:
                    assert over_tolerance(got, value) <= 1


def test_the_page_has_the_tables_that_are_printed(compared: list[Comparison]) -> None:
    """Numbers differ by machine and by number of cases; what they are numbers of does not."""
    first = [re.split(r" ?\| ?", line)[1] for line in tables(compared).splitlines() if line]
    page = [re.split(r" ?\| ?", line)[1] for line in PAGE.read_text().splitlines() if "|" in line]
    assert set(first) <= set(page)
