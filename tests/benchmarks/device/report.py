"""What a part of the measurements on a device found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.benchmarks.markdown import table


class Report:
    """Print what was found, and remember whether anything failed.

    Args:
        device: the device that is measured.
        tiny: whether to do little, to try that the measurement works.
    """

    def __init__(self, device: str, *, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.failures = 0

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)

    def table(self, head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
        """Print a table."""
        self.say(f"\n{table(head, lines)}\n")

    def check(self, what: str, *, holds: bool) -> None:
        """Print whether something holds; if not, the part fails."""
        self.failures += not holds
        self.say(f"- {'holds' if holds else '**FAILED**'}: {what}")
