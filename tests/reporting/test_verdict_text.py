"""A verdict reads well in a terminal of 80 columns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from pytest_bninvariants import Verdict
from pytest_bninvariants.reporting.doc_links import SITE, cause_link
from pytest_bninvariants.reporting.lines import WIDTH
from pytest_bninvariants.reporting.verdict_text import headline, render
from pytest_bninvariants.verdict import Cause, Change, Hazard, Place

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def change(name: str, text: str = "0 -> 1", kind: str = "values") -> Change:
    layer = name if kind in ("eps", "batch-statistics") else name.rpartition(".")[0]
    return Change(name=name, layer=layer, kind=kind, text=text)  # type: ignore[arg-type]


def verdict(*changes: Change, **more: Any) -> Verdict:
    layers = len(dict.fromkeys(c.layer for c in changes))
    plain: dict[str, Any] = {
        "guard": "frozen_bn()",
        "noun": "frozen BN layer",
        "model": "Net",
        "source": "",
        "layers": layers,
        "tensors": len(changes),
    }
    return Verdict(changes=changes, **{**plain, **more})


def drifted(*layers: str, **more: Any) -> Verdict:
    """Every statistic of these layers moved."""
    text = "64 of 64 values, max |d| 1.3e-02 at [2]: 0.0 -> 0.0131"
    changes = [
        change(f"{layer}.{name}", "0 -> 1" if name == STATISTICS[2] else text)
        for layer in layers
        for name in STATISTICS
    ]
    return verdict(*changes, **more)


TRAINING = Cause(name="training-mode", layers=("bn1",), why="bn1 was", fix="call .eval() on bn1")


@pytest.mark.parametrize(
    ("told", "head"),
    [
        (drifted("bn1"), "1 of 1 frozen BN layer changed: bn1"),
        (drifted("bn1", layers=2), "1 of 2 frozen BN layers changed: bn1"),
        (drifted("a", "b"), "2 of 2 frozen BN layers changed: a, b"),
        (drifted("a", "b", "c"), "3 of 3 frozen BN layers changed: a, b and 1 more"),
        (drifted(*"abcdefg", layers=9), "7 of 9 frozen BN layers changed: a, b and 5 more"),
        (verdict(change("weight")), "1 of 1 frozen BN layer changed: the model"),
        (
            drifted("bn1", causes=(TRAINING,)),
            "1 of 1 frozen BN layer changed: bn1 (training-mode)",
        ),
        (
            drifted("bn1", noun="frozen layer"),
            "1 of 1 frozen layer changed: bn1",
        ),
        (
            verdict(change("bn1", kind="batch-statistics")),
            "1 of 1 frozen BN layer normalised with batch statistics: bn1",
        ),
        (
            verdict(change("bn1", kind="batch-statistics"), change("bn2", kind="eps")),
            "2 of 2 frozen BN layers changed or normalised with batch statistics: bn1, bn2",
        ),
        (verdict(change("bn1", kind="eps")), "1 of 1 frozen BN layer changed: bn1"),
    ],
)
def test_the_headline_carries_the_news(told: Verdict, head: str) -> None:
    assert headline(told) == head
    assert render([told]).splitlines()[0] == headline(told)


def test_more_changed_layers_than_there_were_are_a_plural() -> None:
    assert headline(drifted("a", "b", layers=1)).startswith("2 of 2 frozen BN layers")


def test_a_cause_is_named_once_in_the_headline() -> None:
    flip = Cause(name="mode-flip", layers=("b",), why="", fix="")
    told = drifted("a", "b", "c", causes=(TRAINING, flip, TRAINING))
    assert headline(told).endswith("(training-mode, mode-flip)")


def test_the_whole_text() -> None:
    place = Place(
        file=str(Path.cwd() / "tests" / "test_finetune.py"),
        line=31,
        function="train_one_epoch",
        call="Net.train(True)",
    )
    cause = Cause(
        name="training-mode",
        layers=("bn1",),
        why="bn1 normalised 1 batch with batch statistics; "
        "requires_grad=False does not stop running statistics",
        fix="call .eval() on bn1 after every model.train(), or override train() on the model",
        place=place,
        did="put in training mode by",
    )
    told = verdict(
        change("bn1.running_mean", "6 of 6 values, max |d| 1.3e-02 at [2]: 0.0 -> 0.0131"),
        change("bn1.num_batches_tracked", "0 -> 1"),
        source="fixture 'model'",
        layers=2,
        tensors=10,
        causes=(cause,),
        hazards=(Hazard(name="bn2", text="momentum 0.1 -> 0.5"),),
    )
    assert render([told]) == (
        """\
1 of 2 frozen BN layers changed: bn1 (training-mode)

frozen_bn() on Net (fixture 'model'): 2 of 10 watched tensors changed

  tensor                   change
  bn1.running_mean         6 of 6 values, max |d| 1.3e-02 at [2]: 0.0 ->
                           0.0131
  bn1.num_batches_tracked  0 -> 1

why  training-mode: bn1 normalised 1 batch with batch statistics;
     requires_grad=False does not stop running statistics
     put in training mode by Net.train(True) at tests/test_finetune.py:31 in
     train_one_epoch
fix  call .eval() on bn1 after every model.train(), or override train() on
     the model
more https://pytest-bninvariants.github.io/pytest-bninvariants/causes/#training-mode
also bn2: momentum 0.1 -> 0.5"""
    )


def test_each_cause_ends_with_the_address_of_its_section() -> None:
    causes = [Cause(name=name, layers=("a",), why="w", fix="f") for name in ("reset", "loaded")]
    lines = render([drifted("a", causes=tuple(causes))]).splitlines()
    told = [line.removeprefix("more ") for line in lines if line.startswith("more ")]
    assert told == [cause_link("reset"), cause_link("loaded")]


def test_a_tool_in_between_is_told_with_the_place() -> None:
    place = Place(file="/x/a.py", line=3, function="f", call="Net.train(True)", tool="tool.fit")
    did = "put in training mode by"
    cause = Cause(name="mode-flip", layers=("a",), why="w", fix="f", place=place, did=did)
    text = " ".join(render([drifted("a", causes=(cause,))]).split())
    assert "put in training mode by Net.train(True) at /x/a.py:3 in f, by tool.fit" in text


def test_a_file_elsewhere_keeps_its_whole_path(tmp_path: Path) -> None:
    here = os.getcwd()
    place = Place(file=f"{here}-not/a.py", line=3, function="f", call="Net.train(True)")
    cause = Cause(name="mode-flip", layers=("a",), why="w", fix="f", place=place)
    assert f"{here}-not/a.py:3" in render([drifted("a", causes=(cause,))])


def resnet() -> list[str]:
    """Return the names of a resnet50's BN layers."""
    names = ["bn1"]
    for number, depth in enumerate((3, 4, 6, 3), 1):
        for block in range(depth):
            names += [f"layer{number}.{block}.bn{part}" for part in (1, 2, 3)]
            names += [f"layer{number}.0.downsample.1"] if block == 0 else []
    return names


def test_a_big_model_folds_to_one_screen() -> None:
    told = drifted(*resnet(), causes=(TRAINING,))
    lines = render([told]).splitlines()
    assert len(told.changes) == 159
    assert len(lines) <= 40
    assert "frozen_bn() on Net: 159 of 159 watched tensors changed" in lines


def test_a_group_gives_its_first_name_whole_and_how_many_are_like_it() -> None:
    lines = [line.strip() for line in render([drifted(*resnet())]).splitlines()]
    names = [line for line in lines if "layer3" in line]
    assert names == [f"layer3.0.bn1.{name} and 18 like it in layer3" for name in STATISTICS]
    assert any(line.startswith("bn1.running_mean ") for line in lines)


def groups(text: str) -> dict[str, int]:
    """Return the first name of every row of a table, and how many tensors the row stands for."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if words and words[0].endswith((*STATISTICS, ".weight")):
            found[words[0]] = 1 + (int(words[2]) if words[1:2] == ["and"] else 0)
    return found


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "0", "1", "layer", "bn"]), min_size=1, max_size=4),
        min_size=1,
        max_size=60,
        unique_by=tuple,
    )
)
def test_folded_rows_stand_for_every_tensor(paths: list[list[str]]) -> None:
    layers = [".".join(path) for path in paths]
    told = drifted(*layers)
    rows = groups(render([told]))
    assert sum(rows.values()) == len(told.changes)
    assert rows.keys() <= {c.name for c in told.changes}
    assert groups(render([told], verbose=True)) == {c.name: 1 for c in told.changes}


def test_few_tensors_are_not_folded() -> None:
    told = drifted(*[f"layer.{n}.bn" for n in range(6)])
    assert len(told.changes) == 18
    assert groups(render([told])) == {c.name: 1 for c in told.changes}


def test_verbose_unfolds() -> None:
    told = drifted(*resnet())
    text = render([told], verbose=True)
    assert groups(text) == {c.name: 1 for c in told.changes}
    assert "like it" not in text


def test_changes_of_different_kinds_are_not_folded_together() -> None:
    names = [f"layer.{n}.weight" for n in range(60)]
    changes = [change(n, "gone", "gone") if i % 3 == 0 else change(n) for i, n in enumerate(names)]
    assert groups(render([verdict(*changes)])) == {"layer.0.weight": 20, "layer.1.weight": 40}


def test_two_verdicts_are_told_apart() -> None:
    first = drifted("bn1", guard="frozen_bn('backbone')")
    second = drifted("fc1", "fc2", guard="frozen('head')", noun="frozen layer")
    text = render([first, second])
    lines = text.splitlines()
    assert lines[0].startswith("frozen_bn('backbone'): 1 of 1 frozen BN layer changed: bn1")
    assert "frozen('head'): 2 of 2 frozen layers changed: fc1, fc2" in text
    bodies = [line for line in lines if " on Net: " in line]
    assert bodies == [
        "frozen_bn('backbone') on Net: 3 of 3 watched tensors changed",
        "frozen('head') on Net: 6 of 6 watched tensors changed",
    ]
    assert text.index(bodies[0]) < text.index("bn1.running_mean") < text.index(bodies[1])
    assert text.index(bodies[1]) < text.index("fc1.running_mean")


def test_a_hazard_of_many_names_is_told_once() -> None:
    hazards = tuple(Hazard(name=f"a.{n}", text="moved") for n in range(5))
    text = render([drifted("a", hazards=(*hazards, Hazard(name="b", text="other")))])
    assert "also a.0 and 4 more: moved" in text
    assert "also b: other" in text


def test_one_watched_tensor_is_told_in_the_singular() -> None:
    assert "1 of 1 watched tensor changed" in render([verdict(change("a.b"))])


def test_a_violation_without_a_tensor_says_that_none_changed() -> None:
    text = render([verdict(change("bn", "eps 1e-05 -> 0.001", "eps"), tensors=5)])
    assert "0 of 5 watched tensors changed" in text
    assert "bn      eps 1e-05 -> 0.001" in text


words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)
sentences = st.lists(words, min_size=1, max_size=30).map(" ".join)
names = st.lists(words, min_size=1, max_size=5).map(".".join)


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    found = draw(st.lists(names, min_size=1, max_size=30, unique=True))
    places = st.builds(
        Place,
        file=words.map(lambda word: f"/{word}.py"),
        line=st.integers(1, 9999),
        function=words,
        call=words.map(lambda word: f"{word}.train(True)"),
        tool=st.none() | words,
    )
    causes = st.builds(
        Cause,
        name=st.sampled_from(["training-mode", "replaced"]),
        layers=st.just(("a",)),
        why=sentences,
        fix=sentences,
        place=st.none() | places,
    )
    hazards = st.builds(Hazard, name=names, text=sentences)
    return verdict(
        *[change(name, draw(sentences)) for name in found],
        causes=tuple(draw(st.lists(causes, max_size=3))),
        hazards=tuple(draw(st.lists(hazards, max_size=3))),
    )


@settings(deadline=None)
@given(verdicts(), st.booleans())
def test_lines_are_at_most_76_columns_where_they_can_be(told: Verdict, verbose: bool) -> None:
    assert WIDTH == 76
    head, *lines = render([told], verbose=verbose).splitlines()
    assert head == headline(told)
    unbreakable = max(len(name) for name in [c.name for c in told.changes])
    for line in lines:
        if line.startswith(f"more {SITE}"):  # nothing breaks an address
            continue
        assert len(line) <= 76 or len(line.split()) == 1 or " like it" in line, unbreakable
        assert line == line.rstrip()


@settings(deadline=None)
@given(verdicts())
def test_nothing_of_causes_and_hazards_is_lost_in_wrapping(told: Verdict) -> None:
    text = " ".join(render([told], verbose=True).split())
    for cause in told.causes:
        assert f"why {cause.name}: {cause.why}" in text
        assert f"fix {cause.fix}" in text
    for row in told.changes:
        assert row.name in text
        assert row.text in text
    for hazard in told.hazards:
        assert hazard.text in text


def test_a_long_name_has_a_line_of_its_own() -> None:
    name = ".".join(["encoder"] * 12) + ".running_mean"
    lines = render([verdict(change(name, "0 -> 1"))]).splitlines()
    assert f"  {name}" in lines
    assert "        0 -> 1" in lines


def test_the_text_has_no_colour_and_is_ascii() -> None:
    text = render([drifted(*resnet(), causes=(TRAINING,))])
    assert text.isascii()
    assert "\x1b" not in text


def test_the_blocks_of_a_small_resnet_fold_like_those_of_a_big_one() -> None:
    def rows(blocks: list[int], norms: int) -> list[str]:
        layers = [
            f"layer{stage}.{block}.bn{norm}"
            for stage, count in enumerate(blocks, 1)
            for block in range(count)
            for norm in range(1, norms + 1)
        ]
        text = render([drifted("bn1", *layers)])
        return [line.split()[0] for line in text.splitlines() if line[:2] == "  " and "|d|" in line]

    small, big = rows([2, 2, 2, 2], 2), rows([3, 4, 6, 3], 3)
    assert small == big
    assert len(small) < 15
