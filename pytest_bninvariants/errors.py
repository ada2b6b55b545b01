"""What users may catch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_bninvariants.verdict import Verdict


class InvariantBroken(AssertionError):
    """Say that an invariant does not hold.

    Its text is made when it is first asked for; the first line is the headline.

    Args:
        verdicts: the broken guards' verdicts, at least one; a test with several markers may break
            more.
    """

    def __init__(self, *verdicts: Verdict) -> None:
        super().__init__(*verdicts)
        self.verdicts = verdicts
        self._verbose = False
        self._text: str | None = None

    @property
    def verdict(self) -> Verdict:
        """Return the first verdict."""
        return self.verdicts[0]

    def __str__(self) -> str:
        if self._text is None:
            from pytest_bninvariants.reporting.verdict_text import render

            self._text = render(self.verdicts, verbose=self._verbose)
        return self._text

    def __repr__(self) -> str:
        # pytest asks each AssertionError for its repr, long before it knows how to show it
        from pytest_bninvariants.reporting.verdict_text import first_line

        return f"{type(self).__name__}({first_line(self.verdicts)!r})"

    def unfold(self) -> None:
        """Give every tensor a row in the text, however many there are."""
        if not self._verbose:
            self._verbose, self._text = True, None

    def __reduce__(self) -> tuple[type[InvariantBroken], tuple[Verdict, ...], dict[str, Any]]:
        state = {"_text": str(self), "_verbose": self._verbose}  # paths in the text are from here
        return type(self), self.verdicts, state


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
