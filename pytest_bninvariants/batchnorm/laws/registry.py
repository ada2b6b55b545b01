"""The laws by name, and how a pattern chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from hypothesis.strategies import SearchStrategy

from pytest_bninvariants.batchnorm.cases import CONTIGUOUS, Case
from pytest_bninvariants.batchnorm.laws.across_ranks.sharded_cases import sharded_cases
from pytest_bninvariants.batchnorm.strategies import bn_cases
from pytest_bninvariants.batchnorm.trials.declaration import SETTING_NAMES
from pytest_bninvariants.batchnorm.trials.first_look import require_names
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.batchnorm.trials.rank_trial import RankTrial
from pytest_bninvariants.devices import has_float64
from pytest_bninvariants.option_values import DTYPES

LAWS: dict[str, Law] = {}
_FIRST = ("construction", "training_output", "eval_output")
_FAMILIES = (  # the files of laws: one that is broken breaks many of those behind it
    *("values", "state", "gradients", "inputs", "switches", "saving", "calls"),
    *("derivatives", "sizes", "compiling", "even_shards", "uneven_shards", "training", "groups"),
)
ALL_DTYPES = DTYPES
FLOAT32_ONLY = ("float32",)
# for laws that do not depend on the values: more cases, or larger ones, find nothing more
FEW_CASES: dict[str, Any] = {"share": 0.2, "layouts": CONTIGUOUS, "max_values": 256}
# affine_off, cumulative_average and copies_keep_momentum try the others
_SWITCHES = {"affine": "affine", "track_running_stats": "tracking"}  # as bn_cases has them
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
        draws: names of settings that its cases vary.
        needs: what it says nothing without: settings that it sets itself, `num_batches_tracked`,
            `small_batches` (it trains on batches of its own), `state_names` (it goes by the names
            in state_dict()).
        across_ranks: whether it is of layers that synchronise, and runs on several ranks.
    """

    check: Callable[[Any, Case], None]
    cases: Callable[..., SearchStrategy[Case]]
    dtypes: tuple[str, ...]
    share: float
    frozen: bool
    full: bool
    threads: bool
    least_rank: int
    draws: frozenset[str]
    needs: frozenset[str]
    across_ranks: bool = False

    def applies_to(self, subject: LayerUnderTest) -> bool:
        """Tell whether it is a law for layers of this kind."""
        return bool(self.ranks(subject.dims)) and (subject.ranks > 1 or not self.across_ranks)

    def cases_for(self, subject: LayerUnderTest, dtype: str, device: str) -> SearchStrategy[Case]:
        """Return the strategy for cases of a layer, with inputs of a dtype, on a device."""
        least = subject.declaration.least_batch
        size = {"size": subject.ranks} if self.across_ranks else {"min_samples": least}
        return self.cases(dims=self.ranks(subject.dims), dtype=dtype, device=device, **size)

    def reason_to_leave_out(self, subject: LayerUnderTest) -> str | None:
        """Return why it says nothing of a layer, as declared; None if it does."""
        for name in SETTING_NAMES:
            if name in self.needs and name in subject.fixed:
                return f"{name} is fixed at {subject.fixed[name]!r}"
        if "num_batches_tracked" in self.needs and not subject.counts:
            return "there is no num_batches_tracked"
        group = subject.declaration.process_group
        if "process_group" in self.needs and not subject.takes(group):
            return f"its constructor takes no {group}"
        if "small_batches" in self.needs and subject.declaration.least_batch > 1:
            return f"a batch has at least {subject.declaration.least_batch} samples"
        if "state_names" in self.needs and subject.base is not None:
            return "state_dict() has other names"
        return subject.declaration.leaves_out(self.name)

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
    needs: Iterable[str] = (),
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
        needs: what it says nothing without, as `Law` has it.
        drawn: arguments of `bn_cases`.
    """

    def register(check: Callable[[LawTrial, Case], None]) -> Callable[[LawTrial, Case], None]:
        arguments = _PLAIN_CASES | drawn
        draws, switched_off = _varied_settings(arguments)
        LAWS[check.__name__] = Law(
            check=check,
            cases=partial(bn_cases, **arguments),
            dtypes=dtypes,
            share=share,
            frozen=frozen,
            full=full,
            threads=threads,
            least_rank=least_rank,
            draws=frozenset(draws),
            needs=frozenset([*needs, *switched_off]),
        )
        return check

    return register


def rank_law(
    dtypes: tuple[str, ...] = ("float32", "float64"),
    *,
    share: float = 0.3,
    needs: Iterable[str] = (),
    **drawn: Any,
) -> Callable[[Callable[[RankTrial, Case], None]], Callable[[RankTrial, Case], None]]:
    """Register a function as a law of layers that synchronise; arguments as for `law`.

    Args:
        dtypes: names of the inputs' dtypes to check it in.
        share: its share of a run's examples.
        needs: names of settings that it sets itself, and of state, without which it says nothing.
        drawn: arguments of `sharded_cases`.
    """

    def register(check: Callable[[RankTrial, Case], None]) -> Callable[[RankTrial, Case], None]:
        arguments = _PLAIN_CASES | drawn
        draws, switched_off = _varied_settings(arguments)
        LAWS[check.__name__] = Law(
            check=check,
            cases=partial(sharded_cases, **arguments),
            dtypes=dtypes,
            share=share,
            frozen=False,
            full=True,
            threads=False,
            least_rank=2,
            draws=frozenset(draws),
            needs=frozenset([*needs, *switched_off]),
            across_ranks=True,
        )
        return check

    return register


def require_what_laws_need(subject: LayerUnderTest, laws: Iterable[Law]) -> None:
    """Refuse a layer that lacks what some of the laws need, unless that is declared.

    Raises:
        ValueError: if it does; the message says how to go on.
    """
    chosen = [
        law for law in laws if law.applies_to(subject) and not law.reason_to_leave_out(subject)
    ]
    require_names(subject, {name for law in chosen for name in law.needs | law.draws})


def _varied_settings(drawn: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of settings that cases vary, and of those that they switch off."""
    switches = {name: drawn.get(key, True) for name, key in _SWITCHES.items()}
    varied = ["eps", *(["momentum"] if drawn.get("momentum", True) else [])]
    varied += [name for name, value in switches.items() if value is None]
    return varied, [name for name, value in switches.items() if value is False]


def choose_laws(patterns: Iterable[str] = ()) -> list[Law]:
    """Return the laws that patterns choose, the simplest first.

    Args:
        patterns: names of laws, with `*` and `?` as in a shell, or `frozen`: the set that a layer
            with frozen statistics must satisfy; empty: all laws of a whole BatchNorm.

    Raises:
        ValueError: if a pattern chooses nothing.
    """
    wanted = list(patterns)
    laws = sorted(LAWS.values(), key=_simplicity)
    if not wanted:
        return [each for each in laws if each.full]
    for pattern in wanted:
        if not any(_matches(each, pattern) for each in LAWS.values()):
            raise ValueError(
                f"{pattern!r} matches no law; there are frozen (a set), {', '.join(LAWS)}"
            )
    return [each for each in laws if any(_matches(each, p) for p in wanted)]


def _simplicity(each: Law) -> tuple[int, int]:
    """Return a law's place: what says most of the layer comes first, what takes all of it last."""
    family = each.check.__module__.rpartition(".")[2]
    first = _FIRST.index(each.name) if each.name in _FIRST else len(_FIRST)
    return first, _FAMILIES.index(family)


def _matches(each: Law, pattern: str) -> bool:
    return each.frozen if pattern == "frozen" else fnmatchcase(each.name, pattern)
