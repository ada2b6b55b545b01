"""What cannot be judged, and what a guard leaves as it was."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
import torch
from torch import nn

from pytest_bninvariants import GateError, InvariantHazard, bn_updates
from pytest_bninvariants.invariants.bn_updates import note_queue, state_history
from tests.invariants.bn_updates.steps import Net, train, values
from tests.watching import watching


def test_a_step_in_which_nothing_ran_fails_and_so_does_a_model_without_such_layers() -> None:
    with pytest.raises(GateError, match="nothing ran inside bn_updates"), bn_updates(Net()):
        pass
    for model, text in (
        (nn.Linear(2, 2), "no BN layer"),
        (nn.BatchNorm1d(3, track_running_stats=False), "none of the BN layers has running stat"),
    ):
        with pytest.raises(GateError, match=text), bn_updates(model):
            pass


def test_only_a_model_of_which_no_layer_began_in_training_has_nothing_to_update() -> None:
    frozen = nn.Sequential(nn.BatchNorm1d(3)).requires_grad_(False)
    with pytest.warns(InvariantHazard, match="there was nothing to update"), bn_updates(frozen):
        frozen.eval()(values())
    with pytest.raises(GateError, match="no BN layer is in training"), bn_updates(frozen):
        frozen(values())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"times": 1.5}, r"times= takes a whole number >= 0, or \"forwards\"; got 1.5 \(float\)"),
        ({"times": True}, "times= takes a whole number"),
        ({"times": -1}, "times= takes a whole number"),
        ({"times": "steps"}, "got 'steps'"),
        ({"per": "epoch"}, 'per= takes "step" or "optimizer_step"; got \'epoch\''),
        ({"times": "forwards", "per": "optimizer_step"}, "leave per= out"),
    ],
)
def test_a_bad_argument_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(GateError, match=text):
        bn_updates(Net(), **options)
    with pytest.raises(GateError, match="'backbon' matches nothing"), bn_updates(Net(), "backbon"):
        pass


def test_a_step_that_raises_is_not_judged() -> None:
    with pytest.raises(ZeroDivisionError) as caught, bn_updates(Net()):
        _ = 1 / 0
    assert not getattr(caught.value, "__notes__", [])


def test_a_guarded_step_is_bit_for_bit_a_bare_one() -> None:
    bare, guarded = Net(), Net()
    guarded.load_state_dict(bare.state_dict())
    torch.manual_seed(3)
    train(bare, torch.randn(8, 3), torch.randn(8, 3))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with watching(bn_updates(guarded, times=2), layers=1):
        train(guarded, torch.randn(8, 3), torch.randn(8, 3))
    assert torch.get_rng_state().equal(after)
    for name, value in bare.state_dict().items():
        assert value.equal(guarded.state_dict()[name]), name


def test_a_long_step_keeps_few_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_history, "_MOST_STATES", 16)
    monkeypatch.setattr(note_queue, "_MOST_NOTES", 16)
    layer = nn.BatchNorm1d(3)

    def run(count: int) -> int:
        with watching(bn_updates(layer, times=count), layers=1):
            tracemalloc.start()
            for seed in range(count):
                layer(values(seed))
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return held

    run(50)
    assert run(400) < run(100) + 20_000
