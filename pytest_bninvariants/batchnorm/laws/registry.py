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
from pytest_bninvariants.devices import has_float64
from pytest_bninvariants.option_values import DTYPES

LAWS: dict[str, Law] = {}
ALL_DTYPES = DTYPES
FLOAT32_ONLY = ("float32",)
# for laws that do not depend on the values: more cases, or larger ones, find nothing more
FEW_CASES: dict[str, Any] = {"share": 0.2, "layouts": CONTIGUOUS, "max_values": 256}
# affine_off, cumulative_average and copies_keep_momentum try the others
_PLAIN_CASES: dict[str, Any] = {"affine": True, "average": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """A law that a BatchNorm must satisfy.

    Args:
        check: runs a trial of one case, and raises if the layer breaks the law.
        cases: returns the strategy for cases of some ranks, in a dtype, on a device.
        dtypes: names of the inputs' dtypes to check it in.
        share: its share of a run's examples; a law that sweeps sizes needs few.
        frozen: whether a layer with frozen statistics must satisfy it.
        full: whether a whole BatchNorm must satisfy it.
        threads: whether it runs with all threads of torch.
        least_rank: the lowest rank of inputs that it applies to.
    """

    check: Callable[[LawTrial, Case], None]
    cases: Callable[..., SearchStrategy[Case]]
    dtypes: tuple[str, ...]
    share: float
    frozen: bool
    full: bool
    threads: bool
    least_rank: int

    def ranks(self, dims: Iterable[int]) -> tuple[int, ...]:
        """Return the ranks of a layer that it applies to; empty if there are none."""
        return tuple(rank for rank in dims if rank >= self.least_rank)

    def dtypes_on(self, device: str, wanted: Iterable[str] | None = None) -> list[str]:
        """Return the names of dtypes to check it in, among those that a device computes in.

        Args:
            device: the name of the device.
            wanted: the names to choose from; None: all.
        """
        names = [name for name in self.dtypes if wanted is None or name in wanted]
        return [name for name in names if name != "float64" or has_float64(device)]

    @property
    def name(self) -> str:
        """Return the name of the function that checks it."""
        return self.check.__name__

    @property
    def statement(self) -> str:
        """Return the statement in its docstring, on one line."""
        return " ".join((self.check.__doc__ or "").split())


def law(
    dtypes: tuple[str, ...] = ALL_DTYPES,
    *,
    share: float = 1.0,
    frozen: bool = False,
    full: bool = True,
    threads: bool = False,
    least_rank: int = 2,
    **drawn: Any,
) -> Callable[[Callable[[LawTrial, Case], None]], Callable[[LawTrial, Case], None]]:
    """Register a function as a law, under its own name; its docstring states the law.

    Args:
        dtypes: names of the inputs' dtypes to check it in.
        share: its share of a run's examples.
        frozen: whether it belongs to the set for layers with frozen statistics.
        full: whether it belongs to the set for whole BatchNorms.
        threads: whether it runs with all threads of torch.
        least_rank: the lowest rank of inputs that it applies to.
        drawn: arguments of `bn_cases`.
    """

    def register(check: Callable[[LawTrial, Case], None]) -> Callable[[LawTrial, Case], None]:
        LAWS[check.__name__] = Law(
            check=check,
            cases=partial(bn_cases, **_PLAIN_CASES | drawn),
            dtypes=dtypes,
            share=share,
            frozen=frozen,
            full=full,
            threads=threads,
            least_rank=least_rank,
        )
        return check

    return register


def choose_laws(patterns: Iterable[str] = ()) -> list[Law]:
    """Return the laws that patterns choose, in their order.

    Args:
        patterns: names of laws, with `*` and `?` as in a shell, or `frozen`: the set that a layer
            with frozen statistics must satisfy; empty: all laws of a whole BatchNorm.

    Raises:
        ValueError: if a pattern chooses nothing.
    """
    wanted = list(patterns)
    if not wanted:
        return [each for each in LAWS.values() if each.full]
    for pattern in wanted:
        if not any(_matches(each, pattern) for each in LAWS.values()):
            raise ValueError(
                f"{pattern!r} matches no law; there are frozen (a set), {', '.join(LAWS)}"
            )
    return [each for each in LAWS.values() if any(_matches(each, p) for p in wanted)]


def _matches(each: Law, pattern: str) -> bool:
    return each.frozen if pattern == "frozen" else fnmatchcase(each.name, pattern)
