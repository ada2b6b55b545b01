"""What same_output cannot judge is an error that says why."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError, assert_same_output, frozen, same_output


class Noisy(nn.Module):
    def __init__(self, draw: Callable[[], object]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * float(self.draw())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "module",
    [
        Noisy(lambda: torch.rand(())),
        Noisy(random.random),
        Noisy(lambda: numpy.random.rand()),
    ],
    ids=["torch", "random", "numpy"],
)
def test_an_output_that_differs_from_run_to_run_cannot_be_judged(module: nn.Module) -> None:
    with (
        pytest.raises(GateError, match="two runs in eval in a row, on the same inputs, differ"),
        same_output(module, torch.ones(3)),
    ):
        pass


def test_dropout_that_is_not_told_the_mode_is_named() -> None:
    class Forgetful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x)

    with (
        pytest.raises(GateError, match=r"F.dropout does unless it is passed"),
        same_output(Forgetful(), torch.ones(64)),
    ):
        pass


def test_a_block_in_which_nothing_runs_is_an_error(net: Any, batch: Tensor) -> None:
    with pytest.raises(GateError, match="nothing ran"), same_output(net, batch):
        pass


def test_a_guard_around_it_does_not_take_its_runs_for_the_step(net: Any, batch: Tensor) -> None:
    with pytest.raises(GateError, match="nothing ran inside frozen"), frozen(net):
        assert_same_output(net, net, batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net, x: same_output(net), "needs the inputs"),
        (lambda net, x: same_output(x, x), "takes the model, a torch.nn.Module, first"),
        (lambda net, x: same_output(net, x, rtol=-1), "rtol= takes a number >= 0; got -1"),
        (lambda net, x: same_output(net, x, modules="bakbone"), "did you mean 'backbone'"),
        (
            lambda net, x: same_output(net, x, modules=[3]),
            "modules= takes a name or several names; got 3",
        ),
        (lambda net, x: same_output(net, x[:, :1]), "Net in eval raised on these inputs"),
        (lambda net, x: same_output(nn.LazyLinear(3), x), "lazy parameters without values"),
    ],
)
def test_what_cannot_be_judged_is_named(
    net: Any, batch: Tensor, make: Callable[..., Any], message: str
) -> None:
    with pytest.raises(GateError, match=message), make(net, batch):
        net(batch)


@pytest.mark.parametrize(
    ("inputs", "advice"),
    [
        (("head",), "write modules='head'"),
        (("head", "neck"), r"write modules=\['head', 'neck'\]"),
        (("hat",), "$"),
    ],
)
def test_inputs_that_are_names_of_modules_are_taken_for_the_option(
    net: Any, inputs: tuple[str, ...], advice: str
) -> None:
    raised = r"Net in eval raised on these inputs: TypeError: [^;]*"
    with pytest.raises(GateError, match=f"{raised}(; to compare the .*, )?{advice}"):
        same_output(net, *inputs).start()
