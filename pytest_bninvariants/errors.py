"""The exceptions and warnings that users may catch, and what they are made of."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

from pytest_bninvariants.reporting.lines import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_bninvariants.verdict import Verdict


class InvariantBroken(AssertionError):
    """Raised when an invariant does not hold.

    The text is rendered when it is first needed; its first line is the headline.

    Args:
        verdicts: the broken guards' verdicts, at least one; a test with several markers may break
            several guards.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import InvariantBroken, in_sync
        >>> model, teacher = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
        >>> _ = model(torch.randn(4, 2))
        >>> try:
        ...     in_sync(model, teacher)
        ... except InvariantBroken as broken:
        ...     print(broken.verdict.changed_tensors)
        ('running_mean', 'running_var', 'num_batches_tracked')
    """

    def __init__(self, *verdicts: Verdict) -> None:
        super().__init__(*verdicts)
        self.verdicts = verdicts
        self._verbose = False
        self._text: str | None = None

    @property
    def verdict(self) -> Verdict:
        """Return the first broken guard's verdict."""
        return self.verdicts[0]

    def __str__(self) -> str:
        if self._text is None:
            from pytest_bninvariants.reporting.verdict_text import render

            self._text = render(self.verdicts, verbose=self._verbose)
        return self._text

    def __repr__(self) -> str:
        # pytest asks each AssertionError for its repr before it knows how to show it
        from pytest_bninvariants.reporting.verdict_text import first_line

        return f"{type(self).__name__}({first_line(self.verdicts)!r})"

    def unfold(self) -> None:
        """Give every tensor a row in the text, however many there are."""
        if not self._verbose:
            self._verbose, self._text = True, None

    def __reduce__(self) -> tuple[type[InvariantBroken], tuple[Verdict, ...], dict[str, Any]]:
        # the text is rendered here, since its paths are relative to this process's folder
        state = {"_text": str(self), "_verbose": self._verbose}
        return type(self), self.verdicts, state


class FrozenStateChanged(InvariantBroken):
    """Raised when a step changed what `frozen_bn` or `frozen` watches.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import FrozenStateChanged, frozen_bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        >>> try:
        ...     with frozen_bn(model):
        ...         _ = model(torch.randn(4, 3))  # in training mode
        ... except FrozenStateChanged as changed:
        ...     print(str(changed).splitlines()[0])
        1 of 1 frozen BN layer changed: 1 (training-mode)
    """


class DriftNote(str):
    """A note on another exception, which says what had changed when that was raised.

    Args:
        text: the note.
        verdicts: the broken guards' verdicts.
    """

    verdicts: tuple[Verdict, ...]

    def __new__(cls, text: str, verdicts: Sequence[Verdict] = ()) -> DriftNote:
        """Return the text with its verdicts."""
        note = super().__new__(cls, text)
        note.verdicts = tuple(verdicts)
        return note


class LawBroken(AssertionError):
    """Raised when a layer breaks laws of BatchNorm.

    Args:
        message: the report; its first line is the headline.
        law: the name of the broken law; of the first, if there are several.
        snippet: code that reproduces its failure.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import LawBroken, assert_bn_conforms
        >>> class Uncounted(torch.nn.BatchNorm1d):
        ...     def forward(self, x):
        ...         y = super().forward(x)
        ...         self.num_batches_tracked.zero_()
        ...         return y
        >>> try:
        ...     assert_bn_conforms(Uncounted, laws="counter", examples=5)
        ... except LawBroken as broken:
        ...     print(broken.law)
        counter
    """

    def __init__(self, message: str, law: str, snippet: str) -> None:
        super().__init__(message)
        self.law, self.snippet = law, snippet

    def with_note(self, note: str) -> LawBroken:
        """Return the same failure with a note at the end of its headline."""
        headline, newline, rest = str(self).partition("\n")
        return LawBroken(f"{headline}; {note}{newline}{rest}", self.law, self.snippet)

    def __reduce__(self) -> tuple[type[LawBroken], tuple[str, str, str]]:
        return type(self), (str(self), self.law, self.snippet)


class GateError(Exception):
    """Raised when a guard could not judge: it had nothing to watch, or nothing ran inside it.

    It is not an AssertionError, so `xfail(raises=AssertionError)` does not expect it, and the
    plugin reports it as failed even under a bare `xfail`.

    Examples:
        >>> import torch
        >>> from pytest_bninvariants import frozen_bn
        >>> with frozen_bn(torch.nn.BatchNorm1d(2)):
        ...     pass
        Traceback (most recent call last):
        ...
        pytest_bninvariants.errors.GateError: nothing ran inside frozen_bn(): ...
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Refusal(GateError):
    """Raised inside a guard that cannot judge; the guard turns it into a GateError with its name.

    Args:
        message: why the guard cannot judge.
    """

    def as_gate_error(self, spelling: str) -> GateError:
        """Return the error that users see, which begins with the guard as its user wrote it."""
        return GateError(f"{spelling}: {self}")


class InvariantHazard(UserWarning):
    """Issued when an invariant holds, but something may break it later.

    Examples:
        >>> import torch, warnings
        >>> from pytest_bninvariants import frozen
        >>> model = torch.nn.Linear(2, 1)
        >>> with warnings.catch_warnings(record=True) as caught, frozen(model):
        ...     model.weight = torch.nn.Parameter(model.weight.detach().clone())
        >>> [warning.category.__name__ for warning in caught]
        ['InvariantHazard']
        >>> print(caught[0].message)
        frozen() holds, but weight: replaced by a tensor with equal values; ...
    """


class _OneLine(reprlib.Repr):
    """Show no tensor and no module whole, wherever a value contains one."""

    def __init__(self) -> None:
        super().__init__()
        for limit in ("maxdict", "maxlist", "maxtuple", "maxset", "maxfrozenset", "maxdeque"):
            setattr(self, limit, 100)
        self.maxstring = self.maxlong = self.maxother = 1000

    def repr_instance(self, x: Any, level: int) -> str:
        return _summary(x) or super().repr_instance(x, level)


def _summary(value: Any) -> str | None:
    """Return what stands for a tensor or a module; None for other values."""
    kind = type(value).__name__
    if isinstance(value, type):
        return None
    if hasattr(value, "named_modules"):
        return f"<{kind}>"
    try:
        return f"<{kind} of shape {(*value.shape,)}>" if value.shape and value.dtype else None
    except (AttributeError, RuntimeError, TypeError):  # a lazy tensor has no shape yet
        return None


def shorten(value: object) -> str:
    """Return a value's repr on one line, cut to 60 characters, without a tensor's values."""
    text = " ".join(_OneLine().repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def describe(value: object) -> str:
    """Return a value as `shorten` does, with its type, for an error message."""
    return _summary(value) or f"{shorten(value)} ({type(value).__name__})"
