"""Describe who wrote to the tensors that changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pytest_bninvariants.diagnosis.wording import first_few
from pytest_bninvariants.reporting.lines import count_hidden, describe_place, labelled, one_line
from pytest_bninvariants.verdict import Change, Place, Verdict, Write

_NAMED = 3
_SHOWN = 8
_OTHERS = "NumPy, another library, another thread or compiled code may have"


def write_lines(writes: Iterable[Write], *, verbose: bool = False) -> list[str]:
    """Return lines about writes, grouped by operator and place.

    Args:
        writes: the first write to each tensor.
        verbose: show all names and all places, however many there are.
    """
    groups: dict[tuple[object, ...], list[Write]] = {}
    for write in writes:
        key = write.operator, write.place, write.in_backward, write.between, write.replaced
        groups.setdefault(key, []).append(write)
    shown = list(groups.values())[: None if verbose else _SHOWN]
    lines = []
    for group in shown:
        names = _list_names([write.name for write in group], verbose=verbose)
        for number, sentence in enumerate(_sentences(group[0], names)):
            lines += labelled("" if number else "who", sentence)
    return lines + count_hidden(len(groups) - len(shown))


def _list_names(names: Sequence[str], *, verbose: bool = False) -> str:
    """Return names for use in a sentence, the first few of many."""
    all_fit = verbose or len(names) <= _NAMED + 1  # "and 1 more" is no shorter than a name
    return first_few(names, len(names) if all_fit else _NAMED)


def _sentences(write: Write, names: str) -> Iterator[str]:
    if write.operator is None and write.replaced:
        other = "it is another tensor" if names == write.name else "they are other tensors"
        yield f"no operator of torch wrote {names}: {other} now"
        return
    if write.operator is None:
        yield f"no operator of torch was seen to write {names}: {_OTHERS}"
        yield from _bracket(*write.between)
        return
    yield f"{write.operator} {'replaced' if write.replaced else 'wrote'} {names}"
    backward = ", during backward" if write.in_backward else ""
    yield (
        f"at {describe_place(write.place)}{backward}"
        if write.place
        else f"in a thread of torch{backward}"
    )


def _bracket(after: Place | None, before: Place | None) -> Iterator[str]:
    if after is not None:
        yield f"last seen unchanged after {after.call} at {describe_place(after)}"
    if before is not None:
        yield f"first seen changed after {before.call} at {describe_place(before)}"


def compare_runs(
    first: Sequence[Verdict], second: Sequence[Verdict], *, verbose: bool = False
) -> str:
    """Describe what a second, traced run reveals about the first.

    Args:
        first: the broken verdicts of the first run, at least one.
        second: the broken verdicts of the second run.
        verbose: show all names and all places, however many there are.
    """
    lines = []
    for verdict in first:
        again = [each for each in second if _same_guard(each, verdict)][-1:]
        lines += [f"{one_line(verdict.guard)}:"] if len(first) > 1 else []
        lines += _compare_verdict(verdict, again[0] if again else None, verbose=verbose)
    return "\n".join(lines)


def _compare_verdict(first: Verdict, second: Verdict | None, *, verbose: bool) -> list[str]:
    """Return lines about who wrote in the second run what a guard found changed in the first."""
    writes = {} if second is None else {write.name: write for write in second.writes or ()}
    if first.column != "tensor":
        nobody = labelled("who", "nobody: no write was seen that changed its state")
        return write_lines(writes.values(), verbose=verbose) or nobody
    kept = {change.name for change in first.changes if change.kind not in ("gone", "new")}
    changed = [name for name in first.changed_tensors if name in kept]
    lines = write_lines([writes[name] for name in changed if name in writes], verbose=verbose)
    exact = [] if second is None else [change for change in second.changes if change.exact]
    lines += _value_lines(first.changes, exact, verbose=verbose)
    if not changed:
        lines += labelled("who", "nobody: no write broke it")
    missing = [name for name in changed if name not in writes]
    if missing:
        names = _list_names(missing, verbose=verbose)
        lines += labelled("", f"not written again in the second run: {names}")
    return lines


def _value_lines(first: Iterable[Change], second: Iterable[Change], *, verbose: bool) -> list[str]:
    """Return how values changed in the second run, if the first run only had fingerprints."""
    names = {change.name for change in first if not change.exact}
    texts = [f"{change.name}: {change.text}" for change in second if change.name in names]
    shown = texts[: None if verbose else _SHOWN]
    lines = []
    for number, text in enumerate(shown):
        lines += labelled("" if number else "how", text)
    return lines + count_hidden(len(texts) - len(shown))


def _same_guard(one: Verdict, other: Verdict) -> bool:
    return (one.guard, one.model, one.source) == (other.guard, other.model, other.source)
