"""A verdict as a CI shows it: beside a line of a file in the repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CIFinding:
    """A verdict that is to be shown.

    Args:
        level: `error`, `warning` or `notice`.
        test: the id of the test.
        file: the test's file, relative to the repository.
        line: the line of its `def`, from 1; 0 if that is unknown.
        verdict: the verdict, as `Verdict.to_dict` returns it.
        ranks: the ranks that found it; empty if the test ran in one process.
        files: the files of its causes' places, each as it is relative to the repository; None for
            one that is elsewhere.
    """

    level: str
    test: str
    file: str
    line: int
    verdict: Mapping[str, Any]
    ranks: tuple[int, ...]
    files: Mapping[str, str | None]

    def place_of(self, cause: Mapping[str, Any] | None) -> tuple[str, int]:
        """Return the line of a cause; that of the test if it is unknown, or in a library."""
        place = cause["place"] if cause else None
        file = self.files[place["file"]] if place else None
        return (file, place["line"]) if place and file else (self.file, self.line)
