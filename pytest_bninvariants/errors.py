"""What users may catch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_bninvariants.verdict import Verdict


class InvariantBroken(AssertionError):
    """Say that an invariant does not hold.

    Args:
        message: the failure's text; its first line is the headline.
        verdicts: the broken guards' verdicts, at least one.
    """

    def __init__(self, message: str, verdicts: tuple[Verdict, ...]) -> None:
        super().__init__(message)
        self.verdicts = verdicts

    @property
    def verdict(self) -> Verdict:
        """Return the first verdict; a test with several markers may have more in `verdicts`."""
        return self.verdicts[0]

    def __reduce__(self) -> tuple[type[InvariantBroken], tuple[str, tuple[Verdict, ...]]]:
        return type(self), (str(self), self.verdicts)


class FrozenStateChanged(InvariantBroken):
    """Say that a step changed what `frozen_bn` or `frozen` watch."""


class DriftNote(str):
    """A note on another exception that says what had changed.

    Args:
        text: the note.
        verdicts: the broken guards' verdicts.
    """

    verdicts: tuple[Verdict, ...]

    def __new__(cls, text: str, verdicts: Sequence[Verdict] = ()) -> DriftNote:
        """Make the string."""
        note = super().__new__(cls, text)
        note.verdicts = tuple(verdicts)
        return note


class LawBroken(AssertionError):
    """Say that a layer breaks laws of BatchNorm.

    Args:
        message: the report; its first line is the headline.
        law: the law's name; of several, the first.
        snippet: code that reproduces it.
    """

    def __init__(self, message: str, law: str, snippet: str) -> None:
        super().__init__(message)
        self.law, self.snippet = law, snippet

    def __reduce__(self) -> tuple[type[LawBroken], tuple[str, str, str]]:
        return type(self), (str(self), self.law, self.snippet)


class GateError(Exception):
    """Say that a guard could not judge: it was given nothing to watch, or watched nothing.

    It is no AssertionError, so that `xfail(raises=AssertionError)` does not expect it, and the
    plugin reports it as failed even under a bare `xfail`.
    """


class Refusal(GateError):
    """Say why a guard cannot judge; the guard raises it as a GateError that begins with its name.

    Args:
        reason: why.
        verb: what stands between the guard's name and the reason.
    """

    def __init__(self, reason: str, *, verb: str = "") -> None:
        super().__init__(reason)
        self.verb = verb

    def by(self, guard: str) -> GateError:
        """Return the error that users see, for a guard as its user wrote it."""
        return GateError(f"{guard}{self.verb}: {self}")


class InvariantHazard(UserWarning):
    """Say of an invariant that holds what may break it later."""


def shown(value: object) -> str:
    """Return a value as an error message shows it: its repr, cut, and its type."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
