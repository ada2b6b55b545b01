"""The look at a class before the laws: what is missing is told once, or is declared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.laws import LAWS, choose_laws
from pytest_bninvariants.batchnorm.laws.conform import assert_bn_conforms, check_law
from pytest_bninvariants.batchnorm.trials.layer_under_test import LayerUnderTest
from pytest_bninvariants.errors import LawBroken
from tests.batchnorm.laws.known_bad.bases import Composed


class FixedEps2d(nn.Module):
    """A layer with frozen statistics under other names, and an eps that nobody sets."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        stored = (self.running_mean, self.running_var, self.scale, self.bias)
        mean, var, scale, bias = (
            t.to(torch.promote_types(t.dtype, torch.float32))[:, None, None] for t in stored
        )
        return ((x - mean) * (var + 1e-5).rsqrt() * scale + bias).to(x.dtype)


class Wrapped2d(nn.Module):
    """A BatchNorm inside of another module."""

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.inner = nn.BatchNorm2d(channels, eps, momentum, affine, track_running_stats)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


INNER = {
    name: f"inner.{name}"
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


def test_what_is_missing_is_told_in_one_sentence() -> None:
    told = (
        r"^its constructor takes no eps; a new layer of 3 channels has no weight of shape \(3,\); "
        r"declare it, as in 'FixedEps2d\[eps=1e-05\]', or write an adapter: docs/conformance\.md$"
    )
    with pytest.raises(ValueError, match=told):
        assert_bn_conforms(FixedEps2d, laws="frozen")
    with pytest.raises(ValueError, match="takes no eps or momentum or affine or track_running_st"):
        assert_bn_conforms(FixedEps2d)
    with pytest.raises(ValueError, match=r"no running_var of shape \(3,\), no num_batches_tracked"):
        assert_bn_conforms(Wrapped2d, laws="counter")


@pytest.mark.parametrize("name", ["LazyBatchNorm1d", "LazyBatchNorm2d"])
def test_a_lazy_class_is_told_by_what_it_turns_into(name: str) -> None:
    turned = name.removeprefix("Lazy")
    with pytest.raises(ValueError, match=f"{name} is lazy: .* give torch.nn.*:{turned}$"):
        assert_bn_conforms(getattr(nn, name))


def test_what_is_declared_is_checked_with_the_fixed_value() -> None:
    declared = {"eps": 1e-5, "weight": "scale"}
    laws = ["eval_output", "eval_input_gradient", "eval_batch_mates", "eval_keeps_state"]
    assert_bn_conforms(FixedEps2d, laws=laws, declared=declared, examples=10)
    with pytest.raises(LawBroken, match="FixedEps2d breaks the law eval_output"):
        assert_bn_conforms(FixedEps2d, laws=laws, declared=declared | {"eps": 1e-2}, examples=20)


def test_state_within_a_wrapper_and_another_default_are_declared() -> None:
    laws = ["running_mean", "counter", "eval_output", "weight_gradient", "state_in_place"]
    assert_bn_conforms(Wrapped2d, laws=laws, declared=INNER | {"momentum": 0.01}, examples=10)
    with pytest.raises(LawBroken, match="Wrapped2d breaks the law running_mean") as broken:
        assert_bn_conforms(Wrapped2d, laws="running_mean", declared=INNER, examples=20)
    assert "class Wrapped2d_(Wrapped2d):" in broken.value.snippet
    with pytest.raises(AssertionError):
        exec(broken.value.snippet, {})


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"eps": 1e-5}, {"eps_values": "eps is fixed at 1e-05"}),
        ({"num_batches_tracked": None}, {"counter": "there is no num_batches_tracked"}),
        ({"without": {"eval_*": "on purpose"}}, {"eval_output": "on purpose", "counter": None}),
    ],
)
def test_a_law_that_a_declaration_leaves_out_has_a_reason(
    declared: dict[str, Any], reason: dict[str, str | None]
) -> None:
    subject = LayerUnderTest.from_factory(FixedEps2d, declared=declared)
    assert {name: LAWS[name].reason_to_leave_out(subject) for name in reason} == reason


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"epsilon": 1}, "nothing is declared as 'epsilon'; accepted: eps, momentum, affine"),
        ({"without": "compile"}, "without='compile': expected {'PATTERN OF LAWS': 'REASON'}"),
        ({"without": {"compile": ""}}, "without={'compile': ''}: expected"),
        ({"weight": None}, "weight=None: expected where it is, such as 'inner.weight'"),
        ({"running_mean": "a b"}, "running_mean='a b': expected where it is"),
    ],
)
def test_what_cannot_be_declared_is_refused_by_name(declared: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        LayerUnderTest.from_factory(FixedEps2d, declared=declared)


@pytest.mark.parametrize("missing", ["eps", "momentum", "affine", "track_running_stats"])
def test_a_law_declares_each_setting_that_it_needs(missing: str) -> None:
    class Refuses(Composed):
        def __init__(self, channels: int, **settings: Any) -> None:
            assert missing not in settings, f"{missing} is set"
            super().__init__(channels, **settings)

    subject = LayerUnderTest.from_factory(Refuses, rank="2d")
    wrong = [
        law.name
        for law in choose_laws()
        if law.applies_to(subject)
        and missing not in law.needs | law.draws
        and not _holds(law.name, subject)
    ]
    assert wrong == []


def _holds(law: str, subject: LayerUnderTest) -> bool:
    try:
        check_law(LAWS[law], subject, dtype=LAWS[law].dtypes[0], examples=1)
    except LawBroken as broken:
        return "is set" not in str(broken)
    return True


def ranks_of(factory: type[nn.Module]) -> Iterable[int]:
    return LayerUnderTest.from_factory(factory).dims


class Broadcasts(nn.modules.batchnorm._BatchNorm):
    """It gives an output of four dimensions, whatever the input has."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        while x.dim() < 4:
            x = x[..., None]
        return super().forward(x)


class AnyRank(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        pass


def test_a_rank_is_taken_if_the_output_has_the_inputs_shape() -> None:
    assert ranks_of(Broadcasts) == (4, 5)
    assert ranks_of(AnyRank) == (2, 3, 4, 5)
