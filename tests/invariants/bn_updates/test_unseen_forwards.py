"""Where forwards cannot be seen, the counter is judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError, InvariantBroken, bn_updates
from tests.invariants.bn_updates.steps import Net, broken, told, train, values


@pytest.mark.parametrize("times", [1, 2])
def test_compiled_layers_are_judged_by_their_counters_and_the_verdict_says_so(times: int) -> None:
    model = torch.compile(Net(), backend="eager")

    def step() -> None:
        train(model, *map(values, range(times)))

    with bn_updates(model, times=times) as guard:
        step()
    assert guard.verdict is not None
    assert "judged by the counter" in guard.verdict.notes[0]
    verdict = broken(model, step, times=3)
    assert told(verdict)[0][1] == f"{times} update{'s' * (times > 1)}, expected 3"


def test_a_compiled_layer_that_counts_no_batches_is_not_blamed_and_the_verdict_says_so() -> None:
    model = nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True), nn.BatchNorm1d(3))
    compiled = torch.compile(model, backend="eager")
    with bn_updates(compiled) as guard:
        compiled(values(shape=(4, 3, 5)))
    assert guard.verdict is not None
    assert "0 ran where forwards cannot be seen" in " ".join(guard.verdict.notes)
    model[0].eval()
    compiled(values(shape=(4, 3, 5)))
    verdict = broken(compiled, lambda: compiled(values(1, (4, 3, 5))), "0")
    assert told(verdict) == [("_orig_mod.0", "0 updates, expected 1")]


@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, values())])
def test_scripted_layers_are_judged_by_their_counters(make: Callable[[Net], nn.Module]) -> None:
    model = make(Net())
    with bn_updates(model) as guard:
        train(model, values())
    assert guard.verdict is not None
    assert "judged by the counter" in guard.verdict.notes[0]
    verdict = broken(model, lambda: train(model, values(0), values(1)))
    assert told(verdict) == [("bn", "2 updates, expected 1")]
    with pytest.raises(GateError, match="nothing ran"), bn_updates(model):
        pass


def test_an_eager_layer_is_held_against_the_reference_though_compiled_code_runs_beside_it() -> None:
    class Biased(nn.BatchNorm1d):
        """It stores the biased variance."""

        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            count = x.numel() // x.shape[1]
            with torch.no_grad():
                excess = self.momentum * x.var(0, unbiased=True) / count
                self.running_var -= excess
            return output

    model = Biased(3)
    compiled = torch.compile(torch.sin, backend="eager")

    def step() -> None:
        compiled(torch.ones(2))
        model(torch.randn(8, 3))

    with pytest.raises(InvariantBroken) as raised, bn_updates(model):
        step()
    assert raised.value.verdict.changed_layers == ("",)
