"""The rules of the audit by name, and how a run chooses among them. No torch: options read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRule:
    """One rule of the audit.

    Args:
        noun: what a finding is about, in the singular.
        did: what is said of it in the summary.
        tells: what the rule finds, for the help text and the docs.
        can_be_meant: whether people do this on purpose: then a finding is told, and fails a test
            only if the run names the rule.
        marker: the marker that guards against it.
    """

    noun: str
    did: str
    tells: str
    marker: str
    can_be_meant: bool = False

    @property
    def broke(self) -> str:
        """Return the verb of its verdicts; for frozen layers it is that of the guards."""
        return "changed" if self.marker == "frozen_bn" else self.did


AUDIT_RULES = {
    "frozen-moved": AuditRule(
        noun="frozen BN layer",
        did="moved",
        tells="a frozen BN layer whose running statistics move",
        marker="frozen_bn",
    ),
    "frozen-reset": AuditRule(
        noun="frozen BN layer",
        did="moved",
        tells="a frozen BN layer whose statistics become those of a new layer",
        marker="frozen_bn",
    ),
    "teacher-in-training": AuditRule(
        noun="frozen BN layer",
        did="moved",
        tells="a model that runs in training mode under no_grad alone, while another one trains",
        marker="frozen_bn",
    ),
    "recomputation": AuditRule(
        noun="BN layer",
        did="updated again in backward",
        tells="a BN layer that activation checkpointing updates twice with one batch",
        marker="bn_updates",
    ),
    "not-finite": AuditRule(
        noun="BN layer",
        did="not finite",
        tells="a BN layer whose running statistics hold NaN, infinity or a negative variance",
        marker="bn_updates",
    ),
    "stuck-in-eval": AuditRule(
        noun="BN layer",
        did="trained in eval",
        tells="a model that an optimizer trains while all of it is in eval",
        marker="bn_updates",
        can_be_meant=True,
    ),
    "not-in-optimizer": AuditRule(
        noun="layer",
        did="in no optimizer",
        tells="a layer with gradients that no optimizer holds, though one trains the model",
        marker="trains",
        can_be_meant=True,
    ),
}


@dataclass(frozen=True, slots=True)
class RuleChoice:
    """The rules that a run goes by.

    Args:
        failing: those whose findings fail a test with `--bn-audit=fail`.
        told: those whose findings are told, and fail nothing.
    """

    failing: frozenset[str]
    told: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """Return all rules that the run goes by."""
        return self.failing | self.told


DEFAULT_CHOICE = RuleChoice(
    failing=frozenset(name for name, rule in AUDIT_RULES.items() if not rule.can_be_meant),
    told=frozenset(name for name, rule in AUDIT_RULES.items() if rule.can_be_meant),
)


def choose_rules(terms: Iterable[str]) -> RuleChoice:
    """Return the rules that a list of terms chooses.

    Args:
        terms: `NAME` or `all` goes by these rules alone, `+NAME` fails tests by this rule as well,
            `-NAME` leaves it out; none: the default.

    Raises:
        ValueError: if a name is unknown, or no rule is left.

    Examples:
        >>> choose_rules(["not-finite"])
        RuleChoice(failing=frozenset({'not-finite'}), told=frozenset())
    """
    chosen: set[str] = set()
    added: set[str] = set()
    left_out: set[str] = set()
    for term in terms:
        into = {"+": added, "-": left_out}.get(term[:1], chosen)
        into |= _named(term.lstrip("+-"), term)
    failing = (chosen or DEFAULT_CHOICE.failing) | added
    told = frozenset() if chosen else DEFAULT_CHOICE.told - added
    choice = RuleChoice(frozenset(failing - left_out), told - left_out)
    if not choice.all:
        raise ValueError("no rule is left")
    return choice


def _named(name: str, term: str) -> set[str]:
    if name == "all":
        return set(AUDIT_RULES)
    if name not in AUDIT_RULES:
        near = get_close_matches(name, AUDIT_RULES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"{term!r} is not a rule{hint} (accepted: all, {', '.join(AUDIT_RULES)}, each alone, "
            "or with + to add it, or - to leave it out)"
        )
    return {name}
