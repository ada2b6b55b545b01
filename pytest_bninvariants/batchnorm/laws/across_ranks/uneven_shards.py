"""Laws of layers that synchronise, on ranks whose shards differ in size, or are next to nothing."""

from __future__ import annotations

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.laws.across_ranks.sharded_cases import one_empty, single, unequal
from pytest_bninvariants.batchnorm.laws.across_ranks.steps import build_in_training, check_step
from pytest_bninvariants.batchnorm.laws.registry import rank_law
from pytest_bninvariants.batchnorm.trials.rank_trial import RankTrial


@rank_law(shaped=unequal, min_values=1)
def synced_unequal_counts(trial: RankTrial, case: Case) -> None:
    """A rank with more values weighs more, in statistics and gradients: each value counts once."""
    check_step(trial, build_in_training(trial))


@rank_law(("float32",), shaped=one_empty)
def synced_empty_rank(trial: RankTrial, case: Case) -> None:
    """A rank without samples takes part: the others get the whole batch's results, and it, too."""
    check_step(trial, build_in_training(trial))


@rank_law(("float32",), shaped=single, layouts=CONTIGUOUS)
def synced_single_values(trial: RankTrial, case: Case) -> None:
    """One value for each channel is enough on a rank, since there are more on the others."""
    check_step(trial, build_in_training(trial))
