"""The laws by name, and how a pattern chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from hypothesis.strategies import SearchStrategy

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.strategies import bn_cases
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial
from pytest_bninvariants.option_values import DTYPES

LAWS: dict[str, Law] = {}
ALL_DTYPES = DTYPES
FLOAT32_ONLY = ("float32",)
FEW_CASES: dict[str, Any] = {"share": 0.2, "layouts": CONTIGUOUS, "max_values": 256}
_PLAIN: dict[str, Any] = {"affine": True, "average": False}  # laws of their own try the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """What a BatchNorm must satisfy.

    Args:
        check: runs a trial of one case, and raises if it breaks the law.
        cases: the strategy of cases, given ranks, dtype and device.
        dtypes: names of the inputs' dtypes that it is tried in.
        share: of the examples, how many it takes; a law that sweeps needs few.
        frozen: whether a layer with frozen statistics must satisfy it.
        every: whether a whole BatchNorm must.
        threads: whether it runs with as many threads as there are.
        least_rank: the lowest rank of inputs that it is about.
    """

    check: Callable[[LawTrial, Case], None]
    cases: Callable[..., SearchStrategy[Case]]
    dtypes: tuple[str, ...]
    share: float
    frozen: bool
    every: bool
    threads: bool
    least_rank: int

    def ranks(self, dims: Iterable[int]) -> tuple[int, ...]:
        """Return those of a layer's ranks that it is about; none: it says nothing of the layer."""
        return tuple(rank for rank in dims if rank >= self.least_rank)

    @property
    def name(self) -> str:
        """Return its name."""
        return self.check.__name__

    @property
    def statement(self) -> str:
        """Return what it says."""
        return " ".join((self.check.__doc__ or "").split())


def law(
    dtypes: tuple[str, ...] = ALL_DTYPES,
    *,
    share: float = 1.0,
    frozen: bool = False,
    every: bool = True,
    threads: bool = False,
    least_rank: int = 2,
    **drawn: Any,
) -> Callable[[Callable[[LawTrial, Case], None]], Callable[[LawTrial, Case], None]]:
    """Make a function a law.

    Args:
        dtypes: names of dtypes that it is tried in.
        share: of the examples.
        frozen: whether it is of the frozen set.
        every: whether it is of the set for whole BatchNorms.
        threads: whether it runs with as many threads as there are.
        least_rank: the lowest rank of inputs that it is about.
        drawn: what `bn_cases` is told.
    """

    def register(check: Callable[[LawTrial, Case], None]) -> Callable[[LawTrial, Case], None]:
        LAWS[check.__name__] = Law(
            check=check,
            cases=partial(bn_cases, **_PLAIN | drawn),
            dtypes=dtypes,
            share=share,
            frozen=frozen,
            every=every,
            threads=threads,
            least_rank=least_rank,
        )
        return check

    return register


def choose_laws(patterns: Iterable[str] = ()) -> list[Law]:
    """Return the laws that patterns choose, in their order.

    Args:
        patterns: names of laws, with `*` and `?` as in a shell, or `frozen`: the set that a layer
            with frozen statistics must satisfy; none: all laws of a whole BatchNorm.

    Raises:
        ValueError: a pattern chooses nothing.
    """
    wanted = list(patterns)
    if not wanted:
        return [each for each in LAWS.values() if each.every]
    for pattern in wanted:
        if not any(_matches(each, pattern) for each in LAWS.values()):
            raise ValueError(
                f"{pattern!r} matches no law; there are frozen (a set), {', '.join(LAWS)}"
            )
    return [each for each in LAWS.values() if any(_matches(each, p) for p in wanted)]


def _matches(each: Law, pattern: str) -> bool:
    return each.frozen if pattern == "frozen" else fnmatchcase(each.name, pattern)
