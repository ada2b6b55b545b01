"""Render a verdict as HTML, for a notebook or a page; nothing in a name is read as markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_bninvariants.reporting.doc_links import cause_link
from pytest_bninvariants.reporting.lines import INDENT, escape_html
from pytest_bninvariants.reporting.trace_text import write_lines
from pytest_bninvariants.reporting.verdict_text import (
    deed,
    hazard_texts,
    news,
    subject,
    table_rows,
    tensor_count,
    text_of,
)
from pytest_bninvariants.verdict import Verdict

_LEFT = 'style="text-align: left"'


def as_html(verdict: Verdict) -> str:
    """Return a verdict as one `div`."""
    if verdict.holds:
        return f"<div><pre>{escape_html(text_of(verdict))}</pre></div>"
    rows = (f"<tr>{_cells('td', row)}</tr>" for row in table_rows(verdict))
    remarks = (f"<tr>{_cells('td', remark)}</tr>" for remark in _remarks(verdict))
    return (
        f"<div><p><strong>{escape_html(news(verdict))}</strong></p>"
        f"<p>{escape_html(subject(verdict) + tensor_count(verdict))}</p>"
        f"<table><tr>{_cells('th', (verdict.column, 'change'))}</tr>{''.join(rows)}</table>"
        f"<table>{''.join(remarks)}</table></div>"
    )


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag} {_LEFT}>{escape_html(text)}</{tag}>" for text in texts)


def _remarks(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield what a verdict says below its table, each with its label."""
    for cause in verdict.causes:
        yield "why", f"{cause.name}: {cause.why}"
        if cause.place is not None:
            yield "", deed(cause, cause.place)
        yield "fix", cause.fix
        yield "more", cause_link(cause.name)
    for line in write_lines(verdict.writes or ()):
        yield line[: len(INDENT)].strip(), line[len(INDENT) :]
    for text in hazard_texts(verdict.hazards):
        yield "also", text
    for note in verdict.notes:
        yield "note", note
