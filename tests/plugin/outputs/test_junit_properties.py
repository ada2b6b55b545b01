"""junit's file has each verdict, and what the audit found, as properties of the test."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.plugin.audit.test_audit import FREEZE
from tests.plugin.sessions import Sessions

SUITE = """
    from torch import distributed

    @pytest.mark.frozen_bn
    def test_holds(model):
        hold(model)

    @pytest.mark.frozen_bn("bn1")
    @pytest.mark.frozen_bn("bn2")
    def test_drifts(model):
        drift(model)

    def test_expects_it(model, frozen_bn):
        with pytest.raises(AssertionError), frozen_bn(model):
            drift(model)

    @pytest.fixture
    def guarded(model, frozen_bn):
        yield model
        with frozen_bn(model):
            hold(model)

    def test_ends_in_the_teardown(guarded):
        assert False, "own"

    def test_without(record_property):
        record_property("mine", 1)
"""


def properties(sessions: Sessions) -> dict[str, list[tuple[str, Any]]]:
    found: dict[str, list[tuple[str, Any]]] = {}
    for case in ElementTree.parse(sessions.folder / "junit.xml").iterfind(".//testcase"):
        told = found.setdefault(case.attrib["name"], [])
        for each in case.iterfind("properties/property"):
            told.append((each.attrib["name"], json.loads(each.attrib["value"])))
    return found


def outlines(sessions: Sessions) -> dict[str, list[tuple[str, str, bool]]]:
    return {
        test: [(name, value["guard"], value["holds"]) for name, value in told if name != "mine"]
        for test, told in properties(sessions).items()
    }


@pytest.mark.parametrize("options", [(), ("-n2",), ("-ojunit_family=xunit1",)])
def test_each_guards_verdict_is_a_property(sessions: Sessions, options: tuple[str, ...]) -> None:
    sessions.run(SUITE, *options)
    assert outlines(sessions) == {
        "test_holds": [("bn_verdict", "frozen_bn()", True)],
        "test_drifts": [
            ("bn_verdict", "frozen_bn('bn1')", False),
            ("bn_verdict", "frozen_bn('bn2')", False),
        ],
        "test_expects_it": [("bn_verdict", "frozen_bn()", False)],
        "test_ends_in_the_teardown": [("bn_verdict", "frozen_bn()", True)],
        "test_without": [],
    }
    assert properties(sessions)["test_without"] == [("mine", 1)]
    (_, verdict), _ = properties(sessions)["test_drifts"]
    assert verdict["schema"] == 1
    assert verdict["causes"][0]["name"] == "mode-flip"
    assert "ranks" not in verdict


def test_ranks_that_agree_are_told_once_and_named(sessions: Sessions) -> None:
    sessions.run(
        """
        from torch import distributed

        @pytest.mark.ranks(2)
        @pytest.mark.frozen_bn
        def test_alike(model):
            hold(model)

        @pytest.mark.ranks(2)
        @pytest.mark.frozen_bn
        def test_on_one(model):
            (drift if distributed.get_rank() == 1 else hold)(model)
        """
    )
    found = properties(sessions)
    assert [(v["ranks"], v["holds"]) for _, v in found["test_alike"]] == [([0, 1], True)]
    told = [(v["ranks"], v["holds"]) for _, v in found["test_on_one"]]
    assert told == [([0], True), ([1], False)]


def test_a_test_that_is_run_again_has_those_of_each_run_once(sessions: Sessions) -> None:
    sessions.run(
        """
        drifts = iter([True])

        @pytest.mark.frozen_bn
        def test_flaky(model):
            (drift if next(drifts, False) else hold)(model)
        """,
        "--reruns=1",
    )
    told = outlines(sessions)["test_flaky"]
    assert [holds for _, _, holds in told][-1] is True
    assert [holds for _, _, holds in told].count(True) == 1


def test_the_many_examples_of_a_test_are_told_once(sessions: Sessions) -> None:
    sessions.run(
        """
        from hypothesis import given, settings, strategies as st

        @settings(max_examples=20, deadline=None, database=None)
        @given(size=st.integers(2, 1000))
        @pytest.mark.frozen_bn
        def test_examples(kept, size):
            hold(kept, size)

        @settings(max_examples=20, deadline=None, database=None)
        @given(size=st.integers(2, 1000))
        @pytest.mark.frozen_bn
        def test_shrinks(kept, size):
            drift(kept, size)
        """
    )
    told = outlines(sessions)
    assert told["test_examples"] == [("bn_verdict", "frozen_bn()", True)]
    assert 1 <= len(told["test_shrinks"]) <= 3


@pytest.mark.parametrize("option", ["--bn-audit", "--bn-audit=fail"])
@pytest.mark.parametrize("more", [(), ("-n2",)])
def test_what_the_audit_found_is_a_property_too(
    sessions: Sessions, option: str, more: tuple[str, ...]
) -> None:
    sessions.run(
        """
        def test_drifts(frozen_net):
            drift(frozen_net)

        def test_holds_while_it_trains():
            drift(Net())

        def test_holds():
            hold(Net())

        def test_without():
            pass
        """,
        option,
        *more,
        before=FREEZE,
    )
    found = properties(sessions)
    ((name, leak),) = found["test_drifts"]
    assert (name, leak["layers"], leak["frozen"]) == ("bn_audit", 2, 1)
    (moved,) = leak["findings"]
    assert (moved["rule"], moved["fails"]) == ("frozen-moved", True)
    assert moved["verdict"]["changed_layers"] == ["bn1"]
    quiet = {"ran": 2, "layers": 2, "frozen": 0, "findings": []}
    assert found["test_holds_while_it_trains"] == [("bn_audit", quiet)]
    assert found["test_holds"] == [("bn_audit", quiet | {"layers": 0})]
    assert found["test_without"] == []


def test_subtests_verdicts_are_those_of_their_test(sessions: Sessions) -> None:
    sessions.run(
        """
        def test_parts(model, frozen_bn, subtests):
            with subtests.test("holds"), frozen_bn(model, "bn1"):
                hold(model)
            with subtests.test("drifts"), frozen_bn(model, "bn2"):
                drift(model)
        """,
        exit_code=1,
    )
    assert outlines(sessions)["test_parts"] == [
        ("bn_verdict", "frozen_bn('bn1')", True),
        ("bn_verdict", "frozen_bn('bn2')", False),
    ]
