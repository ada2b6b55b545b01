"""A verdict as JSON, whatever is in it, and as docs/verdict.md says."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from pytest_bninvariants import FrozenStateChanged, Verdict, accumulates, frozen_bn
from pytest_bninvariants.reporting.verdict_data import SCHEMA
from pytest_bninvariants.run_config import Trace, override
from pytest_bninvariants.verdict import Cause, Change, ChangeKind, Hazard, Place, Write

PAGE = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")
TEXTS = st.text(st.characters(), max_size=9)  # halves of surrogate pairs among them
SECTIONS = {"A change": Change, "A cause": Cause, "A place": Place, "A hazard": Hazard}
SECTIONS |= {"A write": Write}


def refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def round_trip(verdict: Verdict) -> Any:
    """Return what a strict reader of UTF-8 gets."""
    data = verdict.to_dict()
    for is_ascii in (True, False):
        text = json.dumps(data, allow_nan=False, ensure_ascii=is_ascii)
        assert json.loads(text.encode("utf-8"), parse_constant=refuse) == data
    return data


def verdict_with(name: str) -> Verdict:
    """Return a verdict in which a name stands wherever one can."""
    place = Place(file=name, line=3, function=name, call=name, tool=name)
    return Verdict(
        guard=name,
        noun=name,
        broke=name,
        column=name,
        model=name,
        source=name,
        layers=1,
        tensors=2,
        changes=(Change(name=name, layer=name, kind="values", text=name),),
        causes=(Cause(name=name, layers=(name,), why=name, fix=name, place=place, did=name),),
        hazards=(Hazard(name=name, text=name),),
        writes=(Write(name=name, place=place, between=(place, None)),),
        notes=(name,),
    )


def of_training(**options: Any) -> Verdict:
    model = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(FrozenStateChanged) as failure, frozen_bn(model, **options):
        model(torch.ones(4, 2))
    return failure.value.verdict


@given(TEXTS)
def test_any_name_goes_there_and_back(name: str) -> None:
    verdict = verdict_with(name)
    data = round_trip(verdict)
    shown = data["changes"][0]["name"]
    assert data["guard"] == data["notes"][0] == data["causes"][0]["place"]["file"] == shown
    assert shown == name or any("\ud800" <= each <= "\udfff" for each in name)
    str(verdict).encode("utf-8")


def test_names_that_are_text_stay_as_they_are() -> None:
    for name in ("größe", "层.0", 'a"b\\c', "tab\there", "\x00", "\U0001f525"):
        assert round_trip(verdict_with(name))["model"] == name
    assert round_trip(verdict_with("half \ud83d"))["model"] == "half \\ud83d"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_a_string_that_float_reads(value: float) -> None:
    data = round_trip(dataclasses.replace(verdict_with("a"), layers=value))  # type: ignore[arg-type]
    assert isinstance(data["layers"], str)
    assert str(float(data["layers"])) == str(value)


def test_a_broken_verdict_has_its_headline_and_where_it_came_from() -> None:
    verdict = of_training()
    data = round_trip(verdict)
    assert data["schema"] == SCHEMA
    assert data["holds"] is False
    assert data["headline"] == "1 of 1 frozen BN layer changed: 0 (training-mode)"
    assert data["changed_tensors"] == list(verdict.changed_tensors)
    assert data["causes"][0]["name"] == "training-mode"
    assert data["writes"] == []


def test_a_holding_verdict_says_what_was_watched() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    with frozen_bn(model) as guard:
        model(torch.ones(4, 2))
    assert guard.verdict is not None
    data = round_trip(guard.verdict)
    assert (data["holds"], data["changes"], data["layers"], data["tensors"]) == (True, [], 1, 5)
    assert data["headline"] == str(guard.verdict)
    assert str(guard.verdict) == "frozen_bn() on Sequential holds: 1 frozen BN layer and 5 tensors"


def test_a_headline_is_one_line_however_long_the_guard_is_written() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    names = ["0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"]
    with frozen_bn(model, *names) as guard:
        model(torch.ones(4, 2))
    assert guard.verdict is not None
    headline = round_trip(guard.verdict)["headline"]
    assert headline.endswith("on Sequential holds: 1 frozen BN layer and 5 tensors")
    assert len(headline) > 80


def test_a_verdict_without_tensors_and_a_hazard_are_told_too() -> None:
    summed = accumulates(nn.Linear(2, 1), torch.ones(4, 2), 2, loss=lambda m, x: m(x).mean())
    assert str(summed).startswith("accumulates(k=2) on Linear holds: 2 gradients\nnote")
    assert round_trip(summed)["tensors"] is None
    hazard = Hazard(name="fc.bias", text="replaced by a tensor with equal values")
    verdict = dataclasses.replace(verdict_with("a"), changes=(), causes=(), hazards=(hazard,))
    assert "\nalso fc.bias: replaced by" in str(verdict)


def test_the_text_is_that_of_the_failure() -> None:
    verdict = of_training()
    assert str(verdict) == str(FrozenStateChanged(verdict))


def test_a_write_has_its_operator_and_place() -> None:
    with override(trace=Trace()):
        data = round_trip(of_training())
    write = data["writes"][0]
    assert write["name"] == "0.running_mean"
    assert write["place"]["line"] == of_training.__code__.co_firstlineno + 3
    assert write["between"] == [None, None]


def fields_in(section: str) -> list[str]:
    """Return the first cells of a section's table."""
    _, heading, rest = PAGE.partition(f"\n## {section}\n")
    assert heading, section
    return re.findall(r"^\| `(\w+)` \|", rest.partition("\n## ")[0], re.MULTILINE)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_each_field_of_each_part(section: str) -> None:
    assert fields_in(section) == [field.name for field in dataclasses.fields(SECTIONS[section])]


def test_the_page_has_each_key_of_a_verdict_and_the_number_of_the_schema() -> None:
    assert fields_in("The verdict") == list(verdict_with("a").to_dict())
    assert f'`"schema": {SCHEMA}`' in PAGE


def test_the_page_has_each_kind_of_change() -> None:
    _, _, rest = PAGE.partition("\n## A change\n")
    named = re.findall(r"`([\w-]+)`", re.search(r"kinds: ([^.]*)\.", rest)[1])  # type: ignore[index]
    assert named == list(get_args(ChangeKind))
