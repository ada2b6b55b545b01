"""How names, numbers and parts of sentences are joined."""

from __future__ import annotations

import pytest

from pytest_bninvariants.diagnosis.wording import clauses, name_list, quoted_list


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b", "c"], "a; b; c"),
        (["a", "b", "c", "d", "e"], "a; b; c; and 2 more"),
    ],
)
def test_the_first_three_clauses_of_many_are_shown(texts: list[str], told: str) -> None:
    assert clauses(texts) == told


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], ""),
        ([""], "the model"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and 1 more"),
    ],
)
def test_the_first_two_names_of_many_are_shown(names: list[str], told: str) -> None:
    assert name_list(names) == told


def test_the_first_eight_quoted_names_of_many_are_shown() -> None:
    assert quoted_list(list("ab")) == "'a', 'b'"
    assert quoted_list(list("abcdefghij")).endswith("'g', 'h' and 2 more")
