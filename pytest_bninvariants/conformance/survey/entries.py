"""What the list of public layers is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["on purpose", "undocumented", "fault", "torch's own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What was found out by hand about a deviation.

    Args:
        laws: names of the laws that it breaks, separated by spaces; the first shows it best.
        verdict: `on purpose` where its documentation or code says so, `undocumented` where it may
            be wanted and nothing says so, `fault` where it contradicts its documentation or
            cannot be wanted, `torch's own` where torch's function does it.
        why: what the layer does, and how that was seen.
    """

    laws: str
    verdict: Verdict
    why: str

    def covers(self, law: str) -> bool:
        """Tell whether it explains that a law is broken."""
        return law in self.laws.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicLayer:
    """A public norm layer, how to check it, and what is known of it.

    Args:
        name: its public path.
        package: the distribution that has it.
        spec: what `--bn-impl` takes.
        laws: a pattern of laws; `frozen` for a layer with frozen statistics.
        note: how it is called, where the spec does not say it all.
        judgements: its deviations.
    """

    name: str
    package: str
    spec: str
    laws: str = "*"
    note: str = ""
    judgements: tuple[Judgement, ...] = ()
