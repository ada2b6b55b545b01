"""A case makes its tensors, and prints the code that makes the same ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.batchnorm.cases import LITERAL_VALUES, Batch, Case, literal


def case(channels: int = 3, **options: object) -> Case:
    return Case(batches=(Batch(shape=(2, channels), seed=5),), **options)  # type: ignore[arg-type]


def run(code: list[str], name: str) -> Tensor:
    names: dict[str, Tensor] = {}
    exec("\n".join(code), {"torch": torch}, names)
    return names[name]


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("channels", [3, LITERAL_VALUES, LITERAL_VALUES + 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_state_is_what_its_code_makes(channels: int, dtype: str) -> None:
    made = case(channels, seed=2, state_dtype=dtype)
    assert made.state().keys() == {"weight", "bias", "running_mean", "running_var"}
    for name, value in made.state().items():
        code = made.state_source(name, value)
        assert same(run(code, "value"), value)
        assert (len(code) > 1) == (channels > LITERAL_VALUES)


def test_without_a_seed_the_state_is_that_of_a_new_layer() -> None:
    assert case().state() == {}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"affine": False}, {"running_mean", "running_var"}),
        ({"bias": False}, {"weight", "running_mean", "running_var"}),
        ({"affine": False, "bias": True, "track_running_stats": False}, set()),
        ({"track_running_stats": False}, {"weight", "bias"}),
    ],
)
def test_a_state_has_what_its_layer_has(options: dict[str, bool], names: set[str]) -> None:
    assert case(seed=2, **options).state().keys() == names


@pytest.mark.parametrize("seed", range(1, 11))
def test_of_five_seeds_one_gives_ones_and_two_a_zero_as_weight(seed: int) -> None:
    weight = case(seed=seed).state()["weight"]
    kind = "ones" if bool((weight == 1).all()) else "zero" if not weight[-1] else "any"
    assert kind == {0: "any", 1: "zero", 2: "any", 3: "ones", 4: "zero"}[seed % 5]
    assert bool((weight[:-1].abs() >= 0.25).all())


@pytest.mark.parametrize(
    ("seed", "dtype", "around"),
    [(3, "float32", 1.0), (4, "float32", 1e-5), (5, "float32", 1e5), (4, "float16", 1.0)],
)
def test_the_variance_is_spread_around_1_eps_or_far_above(
    seed: int, dtype: str, around: float
) -> None:
    var = case(8, seed=seed, state_dtype=dtype).state()["running_var"].double() / around
    assert bool(((var > math.exp(-5)) & (var < math.exp(5))).all())
    assert var.unique().numel() == 8


@pytest.mark.parametrize("shape", [(2, 3), (4, 8), (3, 11), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_gradient_is_what_its_code_makes(shape: tuple[int, ...], dtype: str) -> None:
    made = Case(batches=(Batch(shape=(1, 3)), Batch(shape=shape, seed=5)), dtype=dtype)
    code = made.gradient_source(1)
    assert same(run([f"value = {code}"], "value"), made.gradient(1))
    assert made.gradient(1).shape == shape
    assert ("randn" in code) == (math.prod(shape) > LITERAL_VALUES)
    assert not torch.equal(made.gradient(1).double(), Batch(shape=shape, seed=5).values())


def test_code_for_another_device_moves_there() -> None:
    made = Case(batches=(Batch(shape=(4, 30)),), device="cuda:1")
    assert made.gradient_source(0).endswith(".to(torch.float32).to('cuda:1')")
    assert "x = x.to('cuda:1')" in made.batches[0].source("cuda:1")
    assert not any(".to('" in line for line in made.batches[0].source())


def test_settings_are_those_of_torchs_constructor() -> None:
    made = case(eps=0.5, momentum=None, affine=False, bias=False, track_running_stats=False)
    assert made.settings() == {
        "eps": 0.5,
        "momentum": None,
        "affine": False,
        "bias": False,
        "track_running_stats": False,
    }
    layer = nn.BatchNorm1d(3)
    defaults = {name: value for name, value in case().settings().items() if name != "bias"}
    assert defaults == {name: getattr(layer, name) for name in defaults}
    assert case().channels == 3


def test_channels_differ_in_their_spread_and_in_the_sign_of_their_mean() -> None:
    plain = Batch(shape=(4000, 4), sigma=8.0).values()
    assert plain.std(0).tolist() == pytest.approx([8, 4, 2, 8], rel=0.1)
    offset = Batch(shape=(4000, 4), sigma=8.0, kappa=100.0).values()
    assert (offset - plain).mean(0).tolist() == pytest.approx([800, -400, 200, -800])
    positive = Batch(shape=(4000, 4), sigma=8.0, rectified=True).values()
    assert torch.equal(positive, plain.clamp(min=0))


def test_a_batch_knows_its_positions() -> None:
    assert [Batch(shape=shape).positions for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5))] == [
        1,
        4,
        20,
    ]


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.5, -math.inf, math.inf]),
        torch.zeros(0, 3, dtype=torch.float64),
        torch.tensor(3),
        torch.tensor([[0.1, 1e-45]]),
    ],
)
def test_a_literal_is_exact(value: Tensor) -> None:
    assert same(run([f"value = {literal(value)}"], "value"), value)
    assert run([f"value = {literal(torch.tensor([math.nan]))}"], "value").isnan().all()
