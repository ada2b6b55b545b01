"""One test for each law, layer, dtype and device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_bninvariants.plugin.conformance_plan import Check, checks_as_params

if TYPE_CHECKING:
    from pytest_bninvariants.ranks.team import RankTeams


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize the test with each check that the options choose."""
    metafunc.parametrize("check", checks_as_params(metafunc.config))


@pytest.fixture(scope="session")
def bn_rank_teams() -> Iterator[RankTeams]:
    """Return the ranks on which laws of several processes run; the first of these starts them."""
    from pytest_bninvariants.ranks.team import RankTeams

    with RankTeams() as teams:
        yield teams


def test_law(
    check: Check, record_property: Callable[[str, object], None], bn_rank_teams: RankTeams
) -> None:
    """Check that a layer satisfies a law."""
    from pytest_bninvariants.batchnorm.laws.conform import check_law
    from pytest_bninvariants.batchnorm.trials.rank_trial import LawNotTried
    from pytest_bninvariants.errors import LawBroken

    record_property("bn_check", [check.law.name, check.subject.label, check.dtype, check.device])
    try:
        tally = check_law(
            check.law,
            check.subject,
            dtype=check.dtype,
            device=check.device,
            examples=check.examples,
            teams=bn_rank_teams,
        )
    except LawNotTried as reason:
        pytest.skip(str(reason))
    except LawBroken as broken:
        report = str(broken)
        record_property("bn_broken", [check.subject.label, check.law.name])
    else:
        record_property("bn_law", check.law.name)
        record_property("bn_examples", tally.examples)
        record_property("bn_ill_posed", [tally.ill_posed, tally.posed])
        record_property("bn_worst", tally.worst)
        return
    # outside the except block, or pytest would show the report twice
    pytest.fail(report, pytrace=False)
