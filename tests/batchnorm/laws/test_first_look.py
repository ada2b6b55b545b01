"""The look at a class before the laws: what is missing is told once, or is declared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants.batchnorm.laws import LAWS, Law, choose_laws
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


FIXED = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}
INNER = {
    name: f"inner.{name}"
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


def test_what_is_missing_is_told_in_one_sentence() -> None:
    told = (
        r"^its constructor takes no eps; a new layer of 3 channels has no weight of shape \(3,\); "
        r"declare it, as in \"FixedEps2d\[eps=1e-05,weight='path\.of\.it'\]\", or write an "
        r"adapter: docs/conformance\.md$"
    )
    with pytest.raises(ValueError, match=told):
        assert_bn_conforms(FixedEps2d, laws="frozen")
    with pytest.raises(ValueError, match="takes no eps or momentum or affine or track_running_st"):
        assert_bn_conforms(FixedEps2d)
    with pytest.raises(ValueError, match=r"no running_var of shape \(3,\), no num_batches_tracked"):
        assert_bn_conforms(Wrapped2d, laws="counter")


def test_what_to_declare_is_told_as_a_whole_and_state_is_found_by_its_name() -> None:
    places = ",".join(f"{name}='{path}'" for name, path in INNER.items())
    with pytest.raises(ValueError, match=re.escape(f'as in "Wrapped2d[{places}]", or')):
        assert_bn_conforms(Wrapped2d, laws="counter")


def test_a_layer_whose_statistics_stay_in_training_is_told_of_the_laws_for_it() -> None:
    with pytest.raises(ValueError, match="if it is frozen on purpose, choose the laws frozen"):
        assert_bn_conforms(FrozenBatchNorm2d)
    assert_bn_conforms(FrozenBatchNorm2d, laws="frozen", examples=2)


def test_a_layer_whose_statistics_move_is_not_called_frozen() -> None:
    class FixedMomentum2d(Composed):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)

    with pytest.raises(ValueError, match="takes no eps or momentum") as refused:
        assert_bn_conforms(FixedMomentum2d, rank="2d")
    assert "frozen" not in str(refused.value)


class NeedsTypes(nn.BatchNorm1d):
    def __init__(self, channels: int, types: int, *, kind: str = "a") -> None:
        super().__init__(channels * types)


class OfConfig(nn.BatchNorm1d):
    def __init__(self, config: Any) -> None:
        super().__init__(config.channels)


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (NeedsTypes, "pass what it needs besides channels, as in NeedsTypes(types=...), or write"),
        (OfConfig, "if it takes no number of channels first, write an adapter"),
    ],
)
def test_a_class_that_needs_other_arguments_is_told_how_to_go_on(
    factory: type[nn.Module], told: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        assert_bn_conforms(factory)


class InTwo2d(nn.BatchNorm2d):
    """It normalises the first two samples, and the others, by themselves."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return torch.cat([super(InTwo2d, self).forward(part) for part in (x[:2], x[2:])])


class AtLeastThree2d(nn.BatchNorm2d):
    """It refuses small batches in training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < 3:
            raise ValueError("too few")
        return super().forward(x)


def test_the_least_batch_is_declared() -> None:
    laws = ["training_output", "counter", "one_value_per_channel", "state_dict_round_trip"]
    assert_bn_conforms(AtLeastThree2d, laws=laws, declared={"least_batch": 3}, examples=10)
    with pytest.raises(LawBroken, match="too few"):
        assert_bn_conforms(AtLeastThree2d, laws=laws, declared={"least_batch": 2}, examples=10)
    with pytest.raises(LawBroken, match="training_output: y is off") as broken:
        assert_bn_conforms(InTwo2d, laws="training_output", declared={"least_batch": 4})
    assert re.search(r"batches \(4, 1, 1, 1\)", str(broken.value))


def test_a_declared_default_of_batchnorm_is_the_only_value() -> None:
    class Affine2d(nn.BatchNorm2d):
        def __init__(self, channels: int, affine: bool = True) -> None:
            assert affine, "it has weight and bias"
            super().__init__(channels)

    assert LayerUnderTest.from_factory(Affine2d, declared=FIXED).fixed == FIXED
    laws = ["eval_output", "affine_off"]
    assert_bn_conforms(Affine2d, laws=laws, declared=FIXED, examples=3)
    declared = {name: value for name, value in FIXED.items() if name != "affine"}
    with pytest.raises(LawBroken, match="it has weight and bias"):
        assert_bn_conforms(Affine2d, laws=laws, declared=declared, examples=3)


@pytest.mark.parametrize("declared", [{"affine": True}, {}])
def test_a_layer_that_always_has_a_weight_is_not_tried_without_one(
    declared: dict[str, Any],
) -> None:
    class Weighted2d(nn.BatchNorm2d):
        def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
            super().__init__(channels, eps, momentum)

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.weight, nn.Parameter)
            return super().forward(x)

    assert_bn_conforms(Weighted2d, laws="double_backward", declared=declared, examples=2)


def test_a_wrapper_is_held_to_all_laws_that_do_not_go_by_names_of_its_state() -> None:
    subject = LayerUnderTest.from_factory(Wrapped2d, declared=INNER)
    left_out = {law.name for law in choose_laws() if law.reason_to_leave_out(subject)}
    assert "state_dict_keys" in left_out
    assert "reset" in left_out
    assert not {"pickle", "deepcopy", "state_in_place", "counter"} & left_out
    declared = INNER | {"momentum": 0.01}
    laws = ["pickle", "deepcopy", "vmap_parameters"]
    assert_bn_conforms(Wrapped2d, laws=laws, declared=declared, examples=3)


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
        ({"least_batch": 0}, "least_batch=0: expected a number of samples, 1 to 64"),
        ({"least_batch": True}, "least_batch=True: expected a number of samples"),
    ],
)
def test_what_cannot_be_declared_is_refused_by_name(declared: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        LayerUnderTest.from_factory(FixedEps2d, declared=declared)


def noting(given: set[str], fixed: str = "") -> LayerUnderTest:
    """Return a layer that notes the settings which any is made with, and refuses the fixed one."""

    class Notes(Composed):
        def __init__(self, channels: int, **settings: Any) -> None:
            given.update(settings)
            assert fixed not in settings, f"{fixed} is set"
            super().__init__(channels, **settings)

    declared = {name: value for name, value in FIXED.items() if name == fixed}
    return LayerUnderTest.from_factory(Notes, rank="2d", declared=declared)


def test_a_law_sets_nothing_that_is_fixed_and_leaves_out_what_needs_it() -> None:
    given: set[str] = set()
    subject = noting(given)
    wrong = []
    for law in choose_laws():
        if law.applies_to(subject):
            given.clear()
            _run(law, subject)
            undeclared = FIXED.keys() & given - law.needs - law.draws
            wrong += [(law.name, name) for name in undeclared if _sets(law, name)]
    assert wrong == []


def _run(law: Law, subject: LayerUnderTest) -> str:
    """Return how a law is broken in one example, such as by the constructor's signature."""
    try:
        check_law(law, subject, dtype=law.dtypes[0], examples=1)
    except LawBroken as broken:
        return str(broken)
    return ""


def _sets(law: Law, fixed: str) -> bool:
    return "is set" in _run(law, noting(set(), fixed))


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
