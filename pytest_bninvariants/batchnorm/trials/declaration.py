"""What a layer's author declares of it: where it is another than nn.BatchNorm on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from pytest_bninvariants.batchnorm.cases import DEFAULTS
from pytest_bninvariants.checks import is_int

SETTING_NAMES = ("eps", "momentum", "affine", "track_running_stats")
SHARES = ("own", "sum", "mean")
STATE_NAMES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_MOST_RANKS = 16
_MOST_LEAST = 64  # a batch of so many samples is still small
_CHECKS: Mapping[str, Callable[[object], bool]] = {
    "least_batch": lambda value: is_int(value) and 1 <= value <= _MOST_LEAST,
    "ranks": lambda value: is_int(value) and 1 <= value <= _MOST_RANKS,
    "parameter_gradients": lambda value: value in SHARES,
    "process_group": lambda value: isinstance(value, str) and value.isidentifier(),
}
_EXPECTED = {
    "least_batch": f"a number of samples, 1 to {_MOST_LEAST}",
    "ranks": f"how many processes to try it on, a number from 1 to {_MOST_RANKS}",
    "parameter_gradients": f"one of {', '.join(map(repr, SHARES))}",
    "process_group": "the name of the argument of its constructor that takes the group",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What is declared of a layer.

    Args:
        settings: defaults of its constructor that differ from nn.BatchNorm's; one that the
            constructor does not take is fixed at that value.
        state: where parts of its state are, by nn.BatchNorm's names: `inner.running_mean`; None
            for a counter that is not there.
        least_batch: the fewest samples of a batch that it takes in training.
        ranks: over how many processes the laws of several try it; 1: it does not synchronise; None:
            2 if its class's name says that it does.
        parameter_gradients: what weight and bias get on each rank: the sum over its own samples, or
            the sum or the mean of these over the ranks.
        process_group: the name of the constructor's argument for the group.
        without: patterns of laws to leave out, each with the reason.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, str | None] = field(default_factory=dict)
    least_batch: int = 1
    ranks: int | None = None
    parameter_gradients: str = "own"
    process_group: str = "process_group"
    without: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> Declaration:
        """Return the declaration that names and values make.

        Raises:
            ValueError: if a name is unknown, or a value cannot be one of its values.
        """
        for name, value in keywords.items():
            _check(name, value)
        return cls(
            settings={name: keywords[name] for name in SETTING_NAMES if name in keywords},
            state={name: keywords[name] for name in STATE_NAMES if name in keywords},
            **{name: keywords[name] for name in (*_CHECKS, "without") if name in keywords},
        )

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the constructor's defaults by name."""
        return DEFAULTS | dict(self.settings)

    def leaves_out(self, law: str) -> str | None:
        """Return why a law is left out; None if it is not."""
        matches = (why for pattern, why in self.without.items() if fnmatchcase(law, pattern))
        return next(matches, None)


def _check(name: str, value: object) -> None:
    """Refuse what cannot be declared."""
    every = (*SETTING_NAMES, *STATE_NAMES, *_CHECKS, "without")
    if name not in every:
        raise ValueError(f"nothing is declared as {name!r}; accepted: {', '.join(every)}")
    if name == "without" and not _are_reasons(value):
        raise ValueError(f"without={value!r}: expected {{'PATTERN OF LAWS': 'REASON'}}")
    if name in _CHECKS and not _CHECKS[name](value):
        raise ValueError(f"{name}={value!r}: expected {_EXPECTED[name]}")
    if name in STATE_NAMES and not _is_path(value) and (name, value) != (STATE_NAMES[-1], None):
        raise ValueError(f"{name}={value!r}: expected where it is, such as 'inner.{name}'")


def _are_reasons(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(each, str) and each.strip() for pair in value.items() for each in pair
    )


def _is_path(value: object) -> bool:
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))
