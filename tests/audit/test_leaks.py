"""What an audit found is explained by its kind, and the advice names the layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_bninvariants.audit.call_context import CallContext
from pytest_bninvariants.audit.findings.finding import AuditFinding, layer_names
from pytest_bninvariants.audit.findings.leaks import RULES
from pytest_bninvariants.diagnosis.rule import explain
from pytest_bninvariants.verdict import Cause, Place

RAN = Place(file="/project/train.py", line=12, function="fit", call="Net()")
PUT = replace(RAN, line=9, call="Net.train(True)")


def found(
    how: Any = "training",
    name: str = "bn",
    place: Place | None = RAN,
    put: Place | None = PUT,
    **more: Any,
) -> AuditFinding:
    context = CallContext(model="Net", name=name, position=0, holder=None, place=place)
    values = {"kind": "BatchNorm2d", "batches": 1, "optimizer": "SGD", "changes": (), **more}
    return AuditFinding(context=context, how=how, put_in_training=put, **values)


def cause(*findings: AuditFinding) -> Cause:
    (only,) = explain(RULES, findings, layers=layer_names)
    return only


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("training", "training-mode"),
        ("no-grad", "no-grad"),
        ("reset", "reset"),
        ("written", "in-place"),
        ("recomputed", "recomputation"),
        ("not-finite", "not-finite"),
        ("stuck", "stuck-in-eval"),
        ("unheld", "not-in-optimizer"),
    ],
)
def test_each_kind_of_finding_has_its_cause_with_one_layer_and_with_two(
    how: str, name: str
) -> None:
    one, two = cause(found(how)), cause(found(how), found(how, "neck"))
    assert one.name == two.name == name
    assert (one.layers, two.layers) == (("bn",), ("bn", "neck"))
    assert "bn (BatchNorm2d)" in one.why
    assert "bn and neck (BatchNorm2d)" in two.why
    assert "bn and neck (BatchNorm2d) was" not in two.why


def test_the_kinds_of_layers_are_told_the_first_three_of_them() -> None:
    kinds = ["A", "B", "A", "C", "D"]
    said = cause(*(found(name=str(n), kind=kind) for n, kind in enumerate(kinds))).why
    assert said.startswith("0, 1 and 3 more (A, B, C and 1 more) each normalised 1 batch with")


def test_a_layer_that_was_in_eval_first_was_flipped() -> None:
    said = cause(found(flipped=True, batches=3))
    assert said.name == "mode-flip"
    assert said.why.startswith(
        "bn (BatchNorm2d) was in eval, then put in training mode, and normalised 3 batches with "
        "batch statistics, first at "
    )
    assert said.place == PUT


def test_batches_are_told_as_a_span() -> None:
    said = cause(found(batches=1), found(name="neck", batches=4)).why
    assert "each normalised 1 to 4 batches with batch statistics" in said


@pytest.mark.parametrize(("put", "since"), [(PUT, False), (None, True)])
def test_a_layer_that_nobody_was_seen_to_put_in_training_mode_was_so_before(
    put: Place | None, since: bool
) -> None:
    said = cause(found(put=put)).why
    assert ("in training mode since before the test or since it was created" in said) == since


TRAINER, TORCH = replace(RAN, tool="lightning.fit"), replace(RAN, tool="torch.nn.utils")
OVERRIDE = "override train() on the model, so that it ends with .eval() on bn"
AFTER = "call .eval() on bn after every model.train(), or override train() on the model"
BUILT = "call .eval() on bn when the model is built, and after every train()"


@pytest.mark.parametrize(
    ("place", "put", "fix"),
    [
        (RAN, PUT, AFTER),
        (RAN, TRAINER, OVERRIDE),
        (TRAINER, PUT, AFTER),
        (TRAINER, None, OVERRIDE),
        (TORCH, None, BUILT),
        (RAN, None, BUILT),
        (None, None, BUILT),
    ],
)
def test_the_advice_goes_to_whoever_can_follow_it(
    place: Place | None, put: Place | None, fix: str
) -> None:
    assert cause(found(place=place, put=put)).fix == fix


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (RAN, ", first at train.py:12 in fit, in"),
        (TRAINER, ", first at train.py:12 in fit, by lightning.fit, in"),
        (None, "batch statistics, in"),
    ],
)
def test_the_line_that_ran_the_model_is_told_if_it_is_known(place: Place | None, told: str) -> None:
    said = cause(found(place=place, put=None)).why.replace("/project/", "")
    assert told in said.replace("../", "")


def test_a_frozen_layer_in_eval_is_told_with_its_line() -> None:
    said = [
        cause(found(how, place=place)).why for how in ("reset", "written") for place in (RAN, None)
    ]
    assert [" at " in each.partition(", and ")[0] for each in said] == [True, False, True, False]
    assert all("bn (BatchNorm2d) was frozen and ran in eval" in each for each in said)


def test_steps_are_told_with_their_optimizer_and_line() -> None:
    for how in ("stuck", "unheld"):
        said = cause(found(how, stepped_at=RAN))
        assert (said.place, said.did) == (RAN, "stepped by")
        assert "SGD" in said.why
        assert "Net" in said.why


def test_updates_in_backward_are_counted() -> None:
    assert "was updated 1 time in backward" in cause(found("recomputed")).why
    two = cause(found("recomputed", batches=2), found("recomputed", "neck", batches=3))
    assert "were updated 2 to 3 times in backward" in two.why
    assert "their momentum at 0" in two.fix
