"""An idle layer without statistics beside compiled code counts if the code can reach it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.state_change.pairs import BATCH, found, judged

HEARD = {("idle.1", "batch-statistics")}


class Adversaries(nn.Module):
    """A generator that runs eagerly, and a discriminator without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2))
        self.idle = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2, track_running_stats=False))


MODEL = Adversaries().eval()
KEPT = SimpleNamespace(models=[MODEL])


def compiled(function: Callable[..., Any]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    made: Callable[..., Tensor] = torch.compile(function, backend="eager")
    return made


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_layer_beside_a_compiled_loss_that_cannot_reach_it_is_idle(*, warm: bool) -> None:
    loss = compiled(lambda output: output.square().mean())
    if warm:
        loss(BATCH)
    assert judged(MODEL, lambda _: loss(MODEL.generator(BATCH))).holds


def test_a_layer_beside_another_compiled_part_of_the_model_is_idle() -> None:
    generator = compiled(MODEL.generator)
    assert judged(MODEL, lambda _: generator(BATCH)).holds


def run_the_idle_part(batch: Tensor) -> Tensor:
    output: Tensor = MODEL.idle(batch)
    return output


def by_a_global_of_another_function(batch: Tensor) -> Tensor:
    return run_the_idle_part(batch) * 2


def by_an_object_in_a_global(batch: Tensor) -> Tensor:
    output: Tensor = KEPT.models[0].idle(batch)
    return output


class Trainer:
    def __init__(self) -> None:
        self.models = {"both": MODEL}

    def step(self, batch: Tensor) -> Tensor:
        output: Tensor = self.models["both"].idle(batch)
        return output


def by_an_argument(models: dict[str, Adversaries], batch: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    output: Tensor = models["both"].idle(batch)
    return output


def by_a_default(batch: Tensor, model: Adversaries = MODEL) -> Tensor:
    output: Tensor = model.idle(batch)
    return output


def by_a_closure() -> Callable[[Tensor], Tensor]:
    model = MODEL
    return lambda batch: model.idle(batch)


REACHING: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "a closure": lambda: compiled(by_a_closure()),
    "a function that a function calls": lambda: compiled(by_a_global_of_another_function),
    "an object": lambda: compiled(by_an_object_in_a_global),
    "a method": lambda: compiled(Trainer().step),
    "an argument": lambda: partial(compiled(by_an_argument), {"both": MODEL}),
    "a default": lambda: compiled(by_a_default),
    "a partial": lambda: compiled(partial(by_an_argument, {"both": MODEL})),
    "a part of a model": lambda: compiled(MODEL.idle),
    "a part's method": lambda: compiled(MODEL.idle.forward),
}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("make", REACHING.values(), ids=REACHING)
def test_a_layer_that_compiled_code_reaches_is_heard(
    make: Callable[[], Callable[[Tensor], Tensor]], *, warm: bool
) -> None:
    function = make()
    if warm:
        function(BATCH)
    assert found(judged(MODEL, lambda _: function(BATCH))) == HEARD


def test_where_too_much_is_within_reach_every_layer_counts() -> None:
    many = [object() for _ in range(30_000)]
    model = Adversaries().eval()
    double = compiled(lambda batch: batch * min(2, len(many)))
    assert found(judged(model, lambda _: double(model.generator(BATCH)))) == HEARD
