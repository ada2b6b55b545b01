"""Which rules an audit goes by is chosen as ruff's rules are."""

from __future__ import annotations

import pytest

from pytest_bninvariants.audit_rules import AUDIT_RULES, DEFAULT_CHOICE, choose_rules

ALL = frozenset(AUDIT_RULES)
MEANT = frozenset({"stuck-in-eval", "not-in-optimizer"})


def test_by_default_what_can_be_meant_is_told_and_fails_nothing() -> None:
    assert choose_rules([]) == DEFAULT_CHOICE
    assert (DEFAULT_CHOICE.failing, DEFAULT_CHOICE.told) == (ALL - MEANT, MEANT)


@pytest.mark.parametrize(
    ("terms", "failing", "told"),
    [
        (["not-finite"], {"not-finite"}, set()),
        (["not-finite", "frozen-reset"], {"not-finite", "frozen-reset"}, set()),
        (["all"], ALL, set()),
        (["all", "-recomputation"], ALL - {"recomputation"}, set()),
        (["-recomputation"], ALL - MEANT - {"recomputation"}, MEANT),
        (["-stuck-in-eval"], ALL - MEANT, MEANT - {"stuck-in-eval"}),
        (["+stuck-in-eval"], ALL - {"not-in-optimizer"}, {"not-in-optimizer"}),
        (["not-finite", "+frozen-reset"], {"not-finite", "frozen-reset"}, set()),
        (["+stuck-in-eval", "-stuck-in-eval"], ALL - MEANT, {"not-in-optimizer"}),
    ],
)
def test_terms_choose_add_and_leave_out(
    terms: list[str], failing: set[str], told: set[str]
) -> None:
    choice = choose_rules(terms)
    assert (choice.failing, choice.told) == (failing, told)
    assert choice.all == failing | told


def test_an_unknown_name_is_refused_with_what_is_accepted() -> None:
    with pytest.raises(
        ValueError, match="'-not-finit' is not a rule; did you mean not-"
    ) as refusal:
        choose_rules(["-not-finit"])
    assert all(name in str(refusal.value) for name in AUDIT_RULES)


@pytest.mark.parametrize("terms", [["-all"], ["not-finite", "-not-finite"]])
def test_a_choice_of_nothing_is_refused(terms: list[str]) -> None:
    with pytest.raises(ValueError, match="no rule is left"):
        choose_rules(terms)
