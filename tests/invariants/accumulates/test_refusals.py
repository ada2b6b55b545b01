"""What accumulates cannot judge is an error that says why."""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pytest_bninvariants import GateError, accumulates
from tests.engine import Net
from tests.invariants.accumulates.losses import around, squares


def test_dropout_is_refused_by_name_and_fine_in_eval(seven: Tensor) -> None:
    model = around(nn.Dropout(0.5))
    with pytest.raises(GateError, match=r"random numbers.*in training mode: 1 \(Dropout\)"):
        accumulates(model, seven, 2, loss=squares)
    assert accumulates(model.eval(), seven, 2, loss=squares).holds


@pytest.mark.parametrize("draw", [random.random, lambda: torch.rand(1).item()])
def test_randomness_of_the_loss_is_refused(
    net: Net, seven: Tensor, draw: Callable[[], float]
) -> None:
    with pytest.raises(GateError, match="draws random numbers"):
        accumulates(net, seven, 2, loss=lambda model, batch: squares(model, batch) * draw())


def test_randomness_of_unknown_origin_is_refused(net: Net, seven: Tensor) -> None:
    def moody(model: nn.Module, batch: Tensor) -> Tensor:
        return squares(model, batch) * int.from_bytes(os.urandom(4), "big")

    with pytest.raises(GateError, match="two passes over the same batch"):
        accumulates(net, seven, 2, loss=moody)


def test_one_gradient_that_differs_between_passes_is_refused(net: Net, seven: Tensor) -> None:
    def moody(model: nn.Module, batch: Tensor) -> Tensor:
        noise = int.from_bytes(os.urandom(4), "big")
        return squares(model, batch) + noise * model.head.bias.sum()  # type: ignore[union-attr]

    with pytest.raises(GateError, match="two passes over the same batch"):
        accumulates(net, seven, 2, loss=moody)


@pytest.mark.parametrize("weight", [0, 0.0, -1, -0.5])
def test_a_batch_that_weighs_nothing_or_less_is_refused(
    net: Net, seven: Tensor, weight: float
) -> None:
    with pytest.raises(GateError, match=f"must be above 0; got {float(weight)}"):
        accumulates(net, seven, 2, loss=squares, weight=lambda _: weight)


@pytest.mark.parametrize("k", [1, 0, -2, 8, 2.0, True, None, "2"])
def test_a_number_of_micro_batches_that_does_not_fit_is_refused(
    net: Net, seven: Tensor, k: Any
) -> None:
    with pytest.raises(GateError, match=r"a whole number from 2 to 7.*got ") as refused:
        accumulates(net, seven, k, loss=squares)
    assert repr(k) in str(refused.value)


def test_a_batch_of_one_cannot_be_cut(net: Net, seven: Tensor) -> None:
    with pytest.raises(GateError, match="a batch of 1 cannot be cut"):
        accumulates(net, seven[:1], 2, loss=squares)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.tensor(1.0), "samples in dimension 0"),
        ([], "samples in dimension 0"),
        ((torch.ones(4, 2), torch.ones(3)), r"batch\[0\] has 4, batch\[1\] has 3"),
        ({"x": torch.ones(4, 2), "y": {1, 2}}, r"it holds \{1, 2\} \(set\)"),
    ],
)
def test_what_is_no_batch_is_refused(net: Net, batch: Any, said: str) -> None:
    with pytest.raises(GateError, match=said):
        accumulates(net, batch, 2, loss=squares)


def test_what_is_no_model_or_no_loss_is_refused(net: Net, seven: Tensor) -> None:
    with pytest.raises(GateError, match=r"^accumulates\(model, batch, k, .*\) takes the"):
        accumulates(squares, seven, 2, loss=squares)  # type: ignore[arg-type]
    with pytest.raises(GateError, match=r"loss=\.\.\.\) takes a function; got 'mse' \(str\)"):
        accumulates(net, seven, 2, loss="mse")  # type: ignore[arg-type]
    with pytest.raises(GateError, match=r"weight=\.\.\.\) takes a function; got 7 \(int\)"):
        accumulates(net, seven, 2, loss=squares, weight=7)  # type: ignore[arg-type]


def test_a_model_in_which_nothing_trains_is_refused(net: Net, seven: Tensor) -> None:
    with pytest.raises(GateError, match="nothing in the model is trainable"):
        accumulates(net.requires_grad_(False), seven, 2, loss=squares)


def test_a_loss_that_does_not_use_its_model_is_refused(net: Net, seven: Tensor) -> None:
    other = Net().double().eval()
    with pytest.raises(GateError, match="reaches no trainable parameter"):
        accumulates(net, seven, 2, loss=lambda model, batch: squares(other, batch.double()))


def test_gradients_that_are_all_zero_say_nothing(net: Net, seven: Tensor) -> None:
    with pytest.raises(GateError, match="all gradients are 0"):
        accumulates(net, seven, 2, loss=lambda model, batch: squares(model, batch) * 0)


def test_a_batch_that_counts_nothing_is_refused(net: Net, seven: Tensor) -> None:
    with pytest.raises(GateError, match=r"must be above 0; got 0\.0 \(float\)"):
        accumulates(net, seven, 2, loss=squares, weight=lambda batch: 0)


def test_a_gradient_that_is_not_finite_is_refused(net: Net, seven: Tensor) -> None:
    with pytest.raises(GateError, match=r"gradient of .* is not finite"):
        accumulates(net, seven / 0, 2, loss=squares)


def test_a_micro_batch_that_cannot_run_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    said = r"micro-batch 1 of 2 \(1 sample\), in torch.float64 raised ValueError: Expected more"
    with pytest.raises(GateError, match=said):
        accumulates(model, torch.randn(3, 2), 2, loss=squares)


def test_a_loss_that_insists_on_float32_is_refused(net: Net, seven: Tensor) -> None:
    fixed = torch.ones(1, 3, dtype=torch.float32)
    with pytest.raises(GateError, match=r"whole batch .*float64 raised RuntimeError"):
        accumulates(net, seven, 2, loss=lambda m, b: F.linear(m.backbone(b).mean(-1), fixed).mean())


@pytest.mark.parametrize("count", [None, "7", True, math.nan, torch.ones(2), 1j])
def test_a_batch_counts_a_number(net: Net, seven: Tensor, count: Any) -> None:
    told = re.escape("accumulates(weight=...): the weight of a batch must be a number; got ")
    with pytest.raises(GateError, match=f"^{told}"):
        accumulates(net, seven, 2, loss=squares, weight=lambda batch: count)
    with pytest.raises(GateError, match=f"^{told}"):
        accumulates(
            net, seven, 2, loss=squares, weight=lambda batch: 7 if len(batch) == 7 else count
        )


@pytest.mark.parametrize("of", [int, float, torch.tensor, lambda count: torch.tensor([count])])
def test_a_batch_counts_a_number_of_any_sort(net: Net, seven: Tensor, of: Any) -> None:
    assert accumulates(net, seven, 2, loss=squares, weight=lambda batch: of(len(batch))).holds


def test_a_weight_that_raises_is_told(net: Net, seven: Tensor) -> None:
    with pytest.raises(GateError, match=r"accumulates: weight\(batch\) raised IndexError"):
        accumulates(net, seven, 2, loss=squares, weight=lambda batch: batch[99])


@pytest.mark.parametrize(
    ("give", "got"),
    [
        (lambda y: 1.0, r"1\.0 \(float\)"),
        (lambda y: None, r"None \(NoneType\)"),
        (lambda y: (y.sum(), y), r"\(tensor.* \(tuple\)"),
        (lambda y: y, r"<Tensor of shape \(7, 1\)>"),
    ],
)
def test_a_loss_is_a_tensor_of_one_value(
    net: Net, seven: Tensor, give: Callable[[Tensor], Any], got: str
) -> None:
    told = re.escape(
        "accumulates(loss=...): loss(model, batch) returns a tensor of one value; got "
    )
    with pytest.raises(GateError, match=f"^{told}{got}$"):
        accumulates(net, seven, 2, loss=lambda model, batch: give(model(batch)))
