"""A run of a law judges, or says that it could not."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.cases import Batch, Case
from pytest_bninvariants.batchnorm.expectation import BoundedValue
from pytest_bninvariants.batchnorm.laws import LAWS, Law
from pytest_bninvariants.batchnorm.laws.conform import assert_bn_conforms, check_law
from pytest_bninvariants.batchnorm.trials.comparison import ComparisonTally
from pytest_bninvariants.batchnorm.trials.law_trial import LawTrial
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.errors import GateError, LawBroken

LAYER = LayerUnderTest.from_factory(nn.BatchNorm1d)
POSED = Case(batches=(Batch(shape=(20, 3)),))
ILL = Batch(shape=(20, 3), sigma=1e-3, kappa=1e6)
ILL_POSED = Case(batches=(ILL,), eps=1e-8)
LONG = Case(batches=(ILL,) * 9, modes=(True,) * 9, eps=1e-8, momentum=1.0)


class Wider2d(nn.BatchNorm2d):
    """A layer that needs to be told more than its channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels * groups)


def test_a_class_that_makes_no_layer_is_no_broken_law() -> None:
    with pytest.raises(ValueError, match=r"^Wider2d\(3\) raised TypeError: .*'groups'"):
        assert_bn_conforms(Wider2d)
    with pytest.raises(ValueError, match=r"^Wider2d\(3, group=1\) raised TypeError: .*'group'"):
        assert_bn_conforms(Wider2d, group=1)
    with pytest.raises(TypeError, match=r"^<BatchNorm2d> is a layer itself: give its class"):
        assert_bn_conforms(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"^range\(3\) makes no torch\.nn\.Module, but range"):
        assert_bn_conforms(range)


@pytest.mark.parametrize("examples", ["lots", None, 0, -3, 0.5, True, "0", [3]])
def test_a_number_of_examples_is_one_that_the_command_line_takes(examples: Any) -> None:
    told = re.escape(f"examples={examples}: expected a whole number >= 1, quick, default")
    with pytest.raises(ValueError, match=f"^{told}"):
        assert_bn_conforms(nn.BatchNorm1d, laws="counter", examples=examples)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtypes": "int8"}, "dtype 'int8' is unknown; accepted: float64, float32"),
        ({"dtypes": [torch.float32]}, "dtype torch.float32 is unknown"),
        ({"dtypes": torch.float32}, r"dtypes= takes a name or several names; got torch.float32"),
        ({"laws": 3}, r"laws= takes a name or several names; got 3 \(int\)"),
    ],
)
def test_names_are_one_or_several(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        assert_bn_conforms(nn.BatchNorm1d, examples=2, **options)
    assert_bn_conforms(nn.BatchNorm1d, laws="counter", dtypes="float32", examples="quick")
    with pytest.raises(GateError, match="no law is left to run in these dtypes"):
        assert_bn_conforms(nn.BatchNorm1d, laws="counter", dtypes="float64", examples=2)


def on(law: str, *cases: Case) -> Law:
    """Return a law that is run on some cases, each once."""
    return replace(LAWS[law], share=1.0, cases=lambda **_: st.sampled_from(cases))


def test_a_run_of_ill_posed_cases_is_no_judgement() -> None:
    law = on("training_output", ILL_POSED)
    with pytest.raises(GateError, match=r"^training_output: 1\.0 of 1 cases were ill-posed, over"):
        check_law(law, LAYER, examples=1)


def test_the_one_case_of_a_small_share_is_not_the_plainest() -> None:
    seen: list[Case] = []
    law = replace(LAWS["counter"], check=lambda trial, case: seen.append(case), share=0.2)
    check_law(law, LAYER, examples=100)
    plainest = seen[0]
    seen.clear()
    for seed in range(5):
        check_law(law, LAYER, examples=6, seed=seed)
    assert len(seen) == 5
    assert plainest not in seen


def test_a_law_that_a_case_breaks_at_times_is_broken() -> None:
    broken = iter([False, False, True])

    def waver(trial: LawTrial, case: Case) -> None:
        if next(broken, False):
            trial.fail("it is off", None)

    told = r"(?s)BatchNorm1d breaks the law waver: it is off.*gave another result when it ran again"
    with pytest.raises(LawBroken, match=told) as found:
        check_law(replace(LAWS["counter"], check=waver, share=1.0), LAYER)
    assert found.value.__cause__ is None


def test_of_two_cases_one_may_be_ill_posed() -> None:
    tally = check_law(on("training_output", POSED, ILL_POSED), LAYER, examples=2)
    assert tally == ComparisonTally(posed=1, ill_posed=1, examples=2, unjudged=1)


def test_a_case_weighs_no_more_for_having_many_batches() -> None:
    tally = check_law(on("eval_output_after_training", POSED, LONG), LAYER, examples=2)
    assert tally == ComparisonTally(posed=1, ill_posed=9, examples=2, unjudged=1)


def test_a_case_counts_for_its_share() -> None:
    tally = ComparisonTally()
    for posed, ill_posed in ((3, 1), (0, 0), (1, 1)):
        tally.add_case(ComparisonTally(posed=posed, ill_posed=ill_posed))
    assert tally == ComparisonTally(posed=4, ill_posed=2, examples=3, unjudged=0.75)


class Flat(nn.modules.batchnorm._BatchNorm):
    """A layer for (N, C) alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 2:
            raise ValueError("expected (N, C)")


def test_a_law_of_positions_draws_inputs_that_have_some() -> None:
    ranks = set()

    def see(trial: LawTrial, case: Case) -> None:
        ranks.add(len(case.batches[0].shape))

    check_law(
        replace(LAWS["spatial_sizes"], check=see, share=1.0),
        LayerUnderTest.from_factory(nn.BatchNorm1d),
    )
    assert ranks == {3}


def test_a_law_of_positions_says_nothing_of_a_layer_without_them() -> None:
    law = LAWS["spatial_sizes"]
    assert law.ranks((2,)) == ()
    assert law.ranks((2, 3, 4, 5)) == (3, 4, 5)
    assert_bn_conforms(Flat, laws=["spatial_sizes", "counter"], examples=2)
    with pytest.raises(GateError, match="no law is left to run in these dtypes, on a layer of"):
        assert_bn_conforms(Flat, laws="spatial_sizes", examples=2)


def comparison(bound: float) -> ComparisonTally:
    """Return the count of a comparison of two channels, the second of which has this bound."""
    tally = ComparisonTally()
    trial = LawTrial("momentum", "It is so.", LAYER, POSED, tally)
    trial.bind_value("y", torch.tensor([1.0, 2.0]))
    value = torch.tensor([1.0, 3.0], dtype=torch.float64)
    trial.check_close("y", BoundedValue(value, torch.tensor([0.0, bound], dtype=torch.float64)))
    return tally


def test_a_bound_that_is_nan_is_no_judgement() -> None:
    with pytest.raises(GateError, match="momentum: a bound is NaN, so nothing was compared"):
        comparison(math.nan)


def test_a_channel_without_a_bound_counts_for_its_share() -> None:
    assert comparison(math.inf) == ComparisonTally(posed=0.5, ill_posed=0.5)
    assert comparison(1.0) == ComparisonTally(posed=1)
    with pytest.raises(LawBroken, match="y is off in 1 of 2 channels"):
        comparison(0.5)


def test_a_block_that_raises_is_named_in_one_line() -> None:
    class NoTangents2d(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            if torch.autograd.forward_ad.unpack_dual(x).tangent is not None:
                raise NotImplementedError("no tangents")
            return super().forward(x)

    with pytest.raises(LawBroken) as broken:
        assert_bn_conforms(NoTangents2d, laws="forward_derivative", examples=1)
    headline = str(broken.value).splitlines()[0]
    assert "`with forward_ad.dual_level(): " in headline
    assert headline.endswith(" ...` raised NotImplementedError: no tangents")
