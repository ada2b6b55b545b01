"""Where forwards cannot be seen, or another module took a layer's name, the counter is judged."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import GateError, InvariantBroken, InvariantHazard, bn_updates
from tests.invariants.bn_updates.steps import Net, broken, causes, told, train, values
from tests.watching import watching


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


def swap(net: Net, new: nn.Module) -> None:
    net.bn = new  # type: ignore[assignment]


def trained(net: Net) -> Net:
    train(net, values())
    return net


@pytest.mark.parametrize(
    ("new", "kind"),
    [
        (lambda: nn.Identity(), "Identity"),
        (lambda: nn.BatchNorm1d(4).eval(), "BatchNorm1d"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), "BatchNorm1d"),
    ],
)
def test_a_layer_that_is_replaced_before_the_batch(new: Callable[[], nn.Module], kind: str) -> None:
    net = Net()
    verdict = broken(net, lambda: [swap(net, new()), train(net, values())])
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("replaced", ("bn",))
    assert cause.why == f"bn was BatchNorm1d and is another module now: {kind}"
    assert cause.fix.startswith("replace or convert bn before the guarded step")
    assert not any("compiled" in note for note in verdict.notes)


def test_a_layer_that_is_gone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    verdict = broken(net, lambda: [net.pop(1), net(values())], "1")
    assert verdict.causes[0].why == "1 was BatchNorm1d and is gone"


def test_a_warm_layer_that_a_new_one_replaces_has_no_update_that_counts() -> None:
    net = Net()
    net(values())
    verdict = broken(net, lambda: [train(net, values(1)), swap(net, nn.BatchNorm1d(4))])
    assert causes(verdict) == ["replaced"]
    assert "bn is another module now: judged by the counter" in verdict.notes


def test_updates_that_go_with_the_layer_are_a_hazard() -> None:
    net, text = Net(), "none of its updates in the model, where it is another module now: Identity"
    with pytest.warns(InvariantHazard, match=text), bn_updates(net):
        swap(trained(net), nn.Identity())


def test_a_copy_that_takes_the_name_and_the_statistics_holds() -> None:
    net = Net()
    with watching(bn_updates(net), layers=1):
        train(net, values())
        swap(net, copy.deepcopy(net.bn))


def test_a_copy_that_is_updated_too_often_is_no_replacement() -> None:
    net = Net()
    verdict = broken(
        net, lambda: [swap(net, copy.deepcopy(net.bn)), train(net, values(0), values(1))]
    )
    assert causes(verdict) == ["extra-forward"]
    assert told(verdict) == [("bn", "2 updates, expected 1")]
