"""Every text about a model fits and prints, however the model's modules are called."""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from pytest_bninvariants import (
    GateError,
    InvariantBroken,
    Verdict,
    accumulates,
    batch_invariant,
    bn_updates,
    describe,
    frozen,
    frozen_bn,
    in_sync,
    same_output,
    trains,
)
from pytest_bninvariants.reporting.doc_links import SITE
from pytest_bninvariants.reporting.lines import WIDTH, one_line
from pytest_bninvariants.reporting.verdict_data import verdict_from_data
from pytest_bninvariants.reporting.verdict_text import headline, render

CRAFTED = [
    "层 归一化 ",
    "a\nwhy  training-mode: forged",
    "\x1b[31mred\x1b[0m",
    "\u202egnp-exe",
    "\u2028new\u2029line\x85",
    "<b>bold</b>&amp;",
    "*_|`[x](y)",
    "tab\tbed",
    "\ud800half",
    "\x00\x07\x7f",
    "x" * 200,
    "many words in one name " * 6,
    "%s {0} {name}",
    "👩‍🔬",
    "' \" \\",
]
TEXTS = st.text(st.characters(exclude_characters="."), min_size=1)
NAMES = st.sampled_from(CRAFTED) | TEXTS.filter(lambda text: not hasattr(nn.ModuleDict(), text))
SHOWN = {"\n", "\t"}  # what a text may have besides printable characters


class Named(nn.Module):
    """Norm layers in a row, each under a drawn name."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.rows = nn.ModuleDict({name: nn.BatchNorm1d(2) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.rows.values():
            x = layer(x)
        return x


BATCH = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def changed(model: Named) -> None:
    with frozen(model.eval()), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)


def trained(model: Named) -> None:
    with frozen_bn(model):
        model.train()(BATCH)


def updated(model: Named) -> None:
    with bn_updates(model):
        model(BATCH)
        model(BATCH + 1)


def left(model: Named) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with trains(model):
        model(BATCH).square().sum().backward()
        optimizer.zero_grad()
        optimizer.step()


def averaged(model: Named) -> None:
    with in_sync(model, copy.deepcopy(model), decay=0.9), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)


def apart(model: Named) -> None:
    other = copy.deepcopy(model)
    model(BATCH)
    in_sync(model, other)


def converted(model: Named) -> None:
    with same_output(model, BATCH), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)


def mixed(model: Named) -> None:
    for layer in model.rows.values():
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    batch_invariant(model, BATCH)


def split(model: Named) -> None:
    accumulates(model, BATCH, 2, loss=lambda model, batch: model(batch).pow(3).mean())


BROKEN = [changed, trained, updated, left, averaged, apart, converted, split]


def verdict_of(breaks: Callable[[Named], None], names: list[str]) -> Verdict:
    """Return the verdict of a guard that a function breaks."""
    torch.manual_seed(0)
    try:
        breaks(Named(names))
    except InvariantBroken as broken:
        return broken.verdict
    raise AssertionError(f"{breaks.__name__} broke nothing")


def check_lines(text: str, head: str, names: list[str]) -> None:
    """Check that no line is too long but by a name, and that a terminal obeys none of it."""
    strange = {each for each in text if not each.isprintable()} - SHOWN
    assert not strange, [unicodedata.name(each, repr(each)) for each in strange]
    longest = max(len(repr(name)) for name in names)
    for line in text.split("\n")[1:]:
        if line.startswith("and ") and line.endswith(head):  # the news are in one line
            continue
        if line.startswith(f"more {SITE}"):  # nothing breaks an address
            continue
        assert len(line) <= WIDTH + longest, line
        assert len(line) <= WIDTH or longest > 12, line


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)


@settings(max_examples=60)
@given(st.sampled_from(BROKEN), st.lists(NAMES, min_size=1, max_size=4, unique=True), st.booleans())
def test_a_verdict_fits_and_prints_whatever_the_names(
    breaks: Callable[[Named], None], names: list[str], verbose: bool
) -> None:
    check_texts(verdict_of(breaks, names), names, verbose=verbose)


def test_a_guard_that_draws_batches_itself_does_so_too() -> None:
    check_texts(verdict_of(mixed, CRAFTED), CRAFTED, verbose=True)


def check_texts(verdict: Verdict, names: list[str], *, verbose: bool) -> None:
    for text in (str(verdict), render([verdict] * 2, verbose=verbose)):
        check_lines(text, headline(verdict), names)
    data = json.loads(json.dumps(verdict.to_dict(), allow_nan=False).encode())
    assert verdict_from_data(data).to_dict() == data
    html = verdict._repr_html_()
    tags = Tags()
    tags.feed(html)
    assert tags.seen <= {"div", "p", "strong", "table", "tr", "td", "th", "pre"}
    assert all(each.isprintable() or each in SHOWN for each in html)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_a_description_prints_in_its_columns_whatever_the_names(names: list[str]) -> None:
    description = describe(Named(names))
    alike = [f"{number:{len(one_line(name))}}" for number, name in enumerate(names)]
    rows = str(description).split("\n")
    assert len(rows) == len(str(describe(Named(alike))).split("\n"))
    assert all(each.isprintable() or each in SHOWN for each in str(description))


@given(NAMES, NAMES)
def test_a_refusal_prints_whatever_the_names(name: str, missing: str) -> None:
    for guard in (frozen_bn, frozen, bn_updates, trains):
        with pytest.raises(GateError) as refused, guard(Named([name]), f"rows.{missing}.x"):
            pass
        assert all(each.isprintable() or each in SHOWN for each in str(refused.value))
