"""Render a verdict as text: the headline first, useful at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from operator import itemgetter

from pytest_bninvariants.diagnosis.wording import counted, first_few
from pytest_bninvariants.reporting.doc_links import cause_link
from pytest_bninvariants.reporting.lines import describe_place, labelled, one_line, wrap
from pytest_bninvariants.reporting.trace_text import write_lines
from pytest_bninvariants.verdict import Cause, Change, Hazard, Place, Verdict

_TRACED = "traced in this run, in which code compiled by torch.compile ran eagerly"
_UNFOLDED_ROWS = 30
_FOLDED_ROWS = 20
_NAMED_LAYERS = 2
_COLUMN = 36


def headline(verdict: Verdict) -> str:
    """Return the first line, which carries the news.

    Args:
        verdict: a verdict that does not hold.
    """
    layers = verdict.changed_layers
    named = first_few([name or "the model" for name in layers], _NAMED_LAYERS)
    causes = ", ".join(dict.fromkeys(cause.name for cause in verdict.causes))
    return one_line(f"{_extent(verdict)}: {named}" + (f" ({causes})" if causes else ""))


def _extent(verdict: Verdict) -> str:
    """Say how many layers broke the invariant, and how."""
    kinds = {change.kind for change in verdict.changes}
    verbs = [verdict.broke] if kinds - {"batch-statistics"} else []
    if "batch-statistics" in kinds:
        verbs.append("normalised with batch statistics")
    changed = len(verdict.changed_layers)
    watched = max(verdict.layers, changed)
    return f"{changed} of {counted(watched, verdict.noun)} {' or '.join(verbs)}"


def render(verdicts: Sequence[Verdict], *, verbose: bool = False) -> str:
    """Render broken verdicts as one text.

    Args:
        verdicts: verdicts that do not hold, at least one.
        verbose: show a row for every tensor, however many there are.
    """
    sections = [first_line(verdicts), _body(verdicts[0], verbose=verbose)]
    for verdict in verdicts[1:]:
        sections += [f"and {_named_headline(verdict)}", _body(verdict, verbose=verbose)]
    return "\n\n".join(sections)


def text_of(verdict: Verdict) -> str:
    """Return what a verdict says: the text of the failure, or in a line what held."""
    if not verdict.holds:
        return render((verdict,))
    return "\n".join([*wrap(news(verdict), first="", rest="  "), *_remarks(verdict)])


def news(verdict: Verdict) -> str:
    """Return what a verdict says first, in one line however long it is."""
    if not verdict.holds:
        return first_line((verdict,))
    watched = [counted(verdict.layers, verdict.noun)]
    watched += [] if verdict.tensors is None else [counted(verdict.tensors, "tensor")]
    return one_line(f"{subject(verdict)} holds: {' and '.join(watched)}")


def first_line(verdicts: Sequence[Verdict]) -> str:
    """Return the first line of broken verdicts' text."""
    verdict = verdicts[0]
    return headline(verdict) if len(verdicts) == 1 else _named_headline(verdict)


def _named_headline(verdict: Verdict) -> str:
    return f"{one_line(verdict.guard)}: {headline(verdict)}"


def _body(verdict: Verdict, *, verbose: bool) -> str:
    lines = [
        *wrap(f"{subject(verdict)}{tensor_count(verdict)}", first="", rest="  "),
        "",
        *_table(verdict, verbose=verbose),
        "",
        *_remarks(verdict, verbose=verbose),
    ]
    return "\n".join(lines).rstrip()


def subject(verdict: Verdict) -> str:
    """Return the guard, and the model that it judged."""
    source = f" ({verdict.source})" if verdict.source else ""
    return f"{verdict.guard} on {verdict.model}{source}"


def _remarks(verdict: Verdict, *, verbose: bool = False) -> list[str]:
    """Return the lines below the table: why, who wrote, what else, and how it was judged."""
    lines = [line for cause in verdict.causes for line in cause_lines(cause)]
    if verdict.writes:
        lines += write_lines(verdict.writes, verbose=verbose)
        lines += labelled("", _TRACED)
    for text in hazard_texts(verdict.hazards):
        lines += labelled("also", text)
    for note in verdict.notes:
        lines += labelled("note", note)
    return lines


def tensor_count(verdict: Verdict) -> str:
    """Return how many of the watched tensors changed, as the end of a sentence."""
    if verdict.tensors is None:
        return ""
    changed = len(verdict.changed_tensors)
    watched = max(changed, verdict.tensors)
    return f": {changed} of {counted(watched, 'watched tensor')} changed"


def table_rows(verdict: Verdict, *, verbose: bool = False) -> list[tuple[str, str]]:
    """Return the names of what changed, each with how; similar changes of many are one row."""
    changes = verdict.changes
    if verbose or len(changes) <= _UNFOLDED_ROWS:
        return [(one_line(change.name) or "the model", _with_drift(change)) for change in changes]
    foldings = (_fold(changes, depth) for depth in (2, 1, 0))
    rows = next((fold for fold in foldings if len(fold) <= _FOLDED_ROWS), _fold(changes, 0))
    drifts = [(each.drift, each.layer) for each in changes if each.drift is not None]
    largest, layer = max(drifts, default=(0.0, ""), key=itemgetter(0))
    return [*rows, (one_line(layer), f"{_in_nats(largest)}, the largest")] if drifts else rows


def _table(verdict: Verdict, *, verbose: bool) -> list[str]:
    rows = table_rows(verdict, verbose=verbose)
    column = min(max(len(name) for name, _ in [(verdict.column, ""), *rows]), _COLUMN)
    lines = [f"  {verdict.column:{column}}  change"]
    for name, text in rows:
        if len(name) <= column:
            lines += wrap(text, first=f"  {name:{column}}  ", rest=" " * (column + 4))
        else:
            lines += [f"  {name}", *wrap(text, first=" " * 8, rest=" " * 8)]
    return lines


def _fold(changes: Iterable[Change], depth: int) -> list[tuple[str, str]]:
    """Return one row for similar changes in each module of a depth, with the first one's name."""
    groups: dict[tuple[str, str, str, str], list[Change]] = {}
    for change in changes:
        tensor = change.name.removeprefix(change.layer).lstrip(".")
        module = ".".join(change.layer.split(".")[:-1][:depth])
        text = change.text if change.kind == "update" else ""
        groups.setdefault((module, tensor, change.kind, text), []).append(change)
    rows = []
    for (module, *_), group in groups.items():
        like = f" and {len(group) - 1} like it" + (f" in {module}" if module else "")
        rows.append((one_line(group[0].name + (like if len(group) > 1 else "")), group[0].text))
    return rows


def _with_drift(change: Change) -> str:
    return change.text if change.drift is None else f"{change.text}; {_in_nats(change.drift)}"


def _in_nats(drift: float) -> str:
    return f"drift {drift:.2g} nats" if drift < inf else "infinite drift"


def cause_lines(cause: Cause) -> list[str]:
    """Return the lines that say why, where, how to fix it, and where to read more."""
    lines = labelled("why", f"{cause.name}: {cause.why}")
    if cause.place is not None:
        lines += labelled("", deed(cause, cause.place))
    return [*lines, *labelled("fix", cause.fix), *labelled("more", cause_link(cause.name))]


def deed(cause: Cause, place: Place) -> str:
    """Return what happened at a cause's place, and where that is."""
    return f"{cause.did} {place.call} at {describe_place(place)}"


def hazards_in_a_line(hazards: Iterable[Hazard]) -> str:
    """Return hazards as the end of a sentence."""
    return one_line("; ".join(hazard_texts(hazards)))


def hazard_texts(hazards: Iterable[Hazard]) -> list[str]:
    """Return a text for each kind of hazard, with the first of the names that it threatens."""
    grouped: dict[str, list[str]] = {}
    for hazard in hazards:
        grouped.setdefault(hazard.text, []).append(hazard.name or "the model")
    return [f"{first_few(names, 1)}: {text}" for text, names in grouped.items()]
