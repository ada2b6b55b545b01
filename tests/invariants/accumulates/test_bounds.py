"""An error is told from rounding, whatever the dtype of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pytest_bninvariants import accumulates
from tests.engine import Net
from tests.invariants.accumulates.losses import broken, squares


@pytest.mark.parametrize("error", [1e-6, 1e-9, 1e-11])
def test_an_error_far_below_what_float32_shows_is_seen(
    net: Net, seven: Tensor, error: float
) -> None:
    def slightly_off(model: nn.Module, batch: Tensor) -> Tensor:
        return squares(model, batch) * (1 + error * len(batch))

    assert broken(net, seven, 2, loss=slightly_off).changed_tensors


def test_batch_statistics_of_many_values_differ_little_and_are_seen() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), nn.Tanh())
    batch = torch.randn(20_000, 1, 50, generator=torch.Generator().manual_seed(0))
    verdict = broken(model, batch, 2, loss=squares)
    assert verdict.causes[0].name == "training-mode"


@pytest.mark.parametrize("seed", range(8))
def test_a_gradient_that_is_zero_by_symmetry_is_not_blamed_for_its_rounding(seed: int) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:  # softmax does not see a bias of all keys
            return (self.query(x) @ self.key(x).mT).softmax(-1) @ x

    torch.manual_seed(seed)
    assert accumulates(Attention(), torch.randn(5, 3, 4), 2, loss=squares).holds


def test_constants_that_a_forward_makes_have_the_right_dtype(net: Net, seven: Tensor) -> None:
    def shifted(model: nn.Module, batch: Tensor) -> Tensor:
        return F.linear(model(batch), torch.full((1, 1), 0.5)).square().mean()

    assert accumulates(net, seven, 2, loss=shifted).holds


CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda y: y.float(),
    "half": lambda y: y.half().to(y.dtype),
    "to": lambda y: y.to(torch.float32),
    "to by keyword": lambda y: y.to(dtype=torch.bfloat16),
    "type": lambda y: y.type(torch.float32),
    "an operator's dtype": lambda y: y.softmax(-1, dtype=torch.float32),
    "a constant": lambda y: y @ torch.eye(4, dtype=torch.float32),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_what_a_model_casts_itself_is_computed_in_float64_too(
    cast: Callable[[Tensor], Tensor],
) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(cast(model(batch[0])), batch[1])

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    batch = torch.randn(11, 3), torch.arange(11) % 4
    assert accumulates(model, batch, 3, loss=loss).holds
    assert broken(model.train(), batch, 3, loss=loss).changed_tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_dtypes_are_judged_alike(net: Net, seven: Tensor, dtype: Any) -> None:
    assert accumulates(net.to(dtype), seven.to(dtype), 3, loss=squares).holds
    assert not broken(net.train(), seven.to(dtype), 3, loss=squares).holds
