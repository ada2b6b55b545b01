"""What tracing cannot see is said to be unseen, and what nobody asked for is not traced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import frozen
from tests.trace.tracing import Small, Step, add, broken, copy, line_at, line_of, traced

UNSEEN: dict[str, Step] = {
    "NumPy": lambda model: model.mean.numpy().fill(7),
    "another thread": lambda model: in_a_thread(lambda: model.mean.zero_()),
    "a registry": lambda model: model._buffers.update(mean=torch.ones(3)),
}


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize("way", UNSEEN)
def test_what_no_operator_wrote_is_said_to_be_unseen(way: str) -> None:
    (write,) = traced(Small(), UNSEEN[way]).writes or ()
    assert (write.name, write.operator, write.place, write.between) == (
        "mean",
        None,
        None,
        (None, None),
    )
    assert write.replaced == (way == "a registry")


def test_an_unseen_write_is_put_between_two_operators_where_its_name_is_known() -> None:
    def step(model: Any) -> None:
        torch.ones(1)
        torch.ones(1)
        model.mean.numpy().fill(7)
        torch.zeros(1)
        torch.zeros(1)

    (write,) = traced(Small(), step, names=frozenset({"mean"})).writes
    assert write.operator is None
    before, after = (line_at(place, __file__) for place in write.between)
    assert before in ("torch.ones(1)", "model.mean.numpy().fill(7)")  # torch 2.4 detaches there
    assert after == "torch.zeros(1)"


def test_the_last_operator_is_told_where_an_unseen_write_comes_after_it() -> None:
    (write,) = traced(Small(), UNSEEN["NumPy"], names=frozenset({"mean"})).writes
    before, after = write.between
    assert before is not None
    assert after is None


def test_only_names_that_are_asked_for_are_traced() -> None:
    def step(model: Any) -> None:
        add(model)
        copy(model)

    writes = traced(Small(), step, names=frozenset({"mean", "no.such"})).writes
    assert [write.name for write in writes] == ["mean"]


def test_without_tracing_a_verdict_has_no_writes() -> None:
    model = Small()
    failure = broken(frozen(model), lambda: add(model), None)
    assert failure.verdict.writes == ()
    assert "who  " not in str(failure)


def test_names_that_are_gone_or_new_have_no_writers() -> None:
    def step(model: Any) -> None:
        del model.mean
        model.register_buffer("other", torch.ones(1))

    verdict = traced(Small(), step)
    assert {change.kind for change in verdict.changes} == {"gone", "new"}
    assert verdict.writes == ()


def test_flattened_weights_of_a_recurrent_network_are_followed() -> None:
    model = nn.LSTM(3, 3).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()

    def step(model: Any) -> None:
        model.flatten_parameters()
        for _ in range(300):
            torch.ones(1)
        with torch.no_grad():
            model.bias_hh_l0.add_(1)

    (write,) = traced(model, step).writes
    assert (write.operator, line_of(write, __file__)) == (
        "aten.add_.Tensor",
        "model.bias_hh_l0.add_(1)",
    )
