"""How often running statistics are updated, and what is advised where that is another number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_bninvariants import InvariantBroken, bn_updates
from tests.invariants.bn_updates.steps import Net, broken, causes, told, train, values
from tests.watching import watching


def test_one_update_of_each_layer_holds() -> None:
    with bn_updates(Net()) as guard:
        train(guard.model, values())
    assert guard.verdict is not None
    assert (guard.verdict.layers, guard.verdict.notes) == (1, ())


@pytest.mark.parametrize("times", [1, 3])
def test_another_number_of_updates_is_a_violation(times: int) -> None:
    model = Net()
    verdict = broken(model, lambda: train(model, values(0), values(1)), times=times)
    assert told(verdict) == [("bn", f"2 updates, expected {times}")]
    assert causes(verdict) == ["extra-forward" if times == 1 else "fewer-forwards"]


def test_accumulation_is_told_with_what_it_does_to_the_momentum() -> None:
    model = Net()
    batches = [values(seed) for seed in range(4)]
    (cause,) = broken(model, lambda: train(model, *batches)).causes
    assert "4 updates with momentum 0.1 weigh the new batches 1 - (1 - 0.1)^4 = 0.344" in cause.why
    assert "times=4, and for micro-batches use momentum 1 - (1 - 0.1)^(1/4) = 0.026" in cause.fix
    assert cause.place is not None
    assert cause.place.function == "train"
    with watching(bn_updates(model, times=4), layers=1):
        train(model, *batches)


def accumulate(model: nn.Module, *counts: int) -> None:
    """Take a step of an optimizer for each number of micro-batches."""
    for count in counts:
        train(model, *(torch.randn(8, 3) for _ in range(count)))


def test_what_is_advised_for_each_step_of_an_optimizer_holds() -> None:
    model = Net()
    verdict = broken(model, lambda: accumulate(model, 2, 2), per="optimizer_step")
    assert verdict.broke == "not updated exactly once in each optimizer step"
    assert told(verdict) == [("bn", "4 updates, expected 2")]
    (cause,) = verdict.causes
    assert "in 4 forwards of 2 optimizer steps; 2 updates with momentum 0.1 weigh" in cause.why
    assert "times=2, and for micro-batches use momentum 1 - (1 - 0.1)^(1/2) = 0.0513" in cause.fix
    with watching(bn_updates(model, per="optimizer_step", times=2), layers=1):
        accumulate(model, 2, 2)


def test_where_steps_or_layers_differ_no_number_is_advised() -> None:
    model = Net()
    (cause,) = broken(model, lambda: accumulate(model, 2, 3), per="optimizer_step").causes
    assert 'pass times="forwards", without per=: no number fits' in cause.fix
    with watching(bn_updates(model, times="forwards"), layers=1):
        accumulate(model, 2, 3)
    twice, often = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def run() -> None:
        for _ in range(2):
            twice(torch.randn(8, 3))
            nn.Sequential(often, often)(torch.randn(8, 3))

    causes = broken(nn.ModuleList([twice, often]), run).causes
    assert all('pass times="forwards"' in cause.fix for cause in causes)


def test_no_number_of_times_is_advised_where_none_would_hold() -> None:
    model = Net()
    (cause,) = broken(model, lambda: train(model, values(), values()), times=2).causes
    assert cause.name == "extra-forward"
    assert "times=" not in cause.fix
    assert "switch track_running_stats off" in cause.fix


def test_the_momentum_that_is_advised_weighs_as_much_as_one_batch() -> None:
    layer = nn.BatchNorm1d(3, momentum=1 - (1 - 0.1) ** (1 / 4)).double()
    one = nn.BatchNorm1d(3).double()
    x = values().double()
    with watching(bn_updates(layer, times="forwards"), layers=1):
        for _ in range(4):
            torch.optim.SGD(layer.parameters(), lr=0.0).step()
            layer(x)
    one(x)
    assert layer.running_var.allclose(one.running_var)


def test_once_a_forward_holds_for_any_number_and_not_for_one_without_an_update() -> None:
    model = Net()
    with watching(bn_updates(model, times="forwards"), layers=1):
        train(model, *map(values, range(5)))

    def one_without() -> None:
        train(model, values(0))
        model.bn.track_running_stats = False
        train(model, values(1))

    verdict = broken(model, one_without, times="forwards")
    assert told(verdict) == [("bn", "1 update, 1 forward without, one a forward")]
    assert causes(verdict) == ["tracking-off"]


def test_frozen_layers_are_left_alone_unless_they_are_named() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[0].eval().requires_grad_(False)
    with bn_updates(model) as guard:
        model(values())
    assert guard.verdict is not None
    assert guard.verdict.layers == 1
    assert causes(broken(model, lambda: model(values()), "0")) == ["stuck-in-eval"]
    with watching(bn_updates(model, "0", times=0), layers=1):
        model(values())


def test_two_networks_are_told_apart_by_name() -> None:
    gan = nn.ModuleDict({"generator": Net(), "critic": Net()})

    def step_of_the_critic() -> None:
        train(gan["critic"], values(0), values(1))

    with watching(bn_updates(gan, "critic", times=2), layers=1):
        step_of_the_critic()
    with watching(bn_updates(gan["critic"], times=2), layers=1):
        step_of_the_critic()
    verdict = broken(gan, step_of_the_critic, times=2)
    assert told(verdict) == [("generator.bn", "0 updates, expected 2")]
    assert causes(verdict) == ["not-run"]


def epoch(model: nn.Module, *counts: int) -> None:
    """Take a step of one optimizer for each number of micro-batches, all of them different."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for count in counts:
        optimizer.zero_grad()
        for _ in range(count):
            model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()


def test_an_epoch_is_told_to_count_for_each_step_of_an_optimizer() -> None:
    model = Net()
    (cause,) = broken(model, lambda: epoch(model, 1, 1, 1)).causes
    assert "in 3 forwards of 3 optimizer steps" in cause.why
    assert cause.fix == 'pass per="optimizer_step": each of the 3 steps has one'
    assert "momentum" not in cause.why + cause.fix
    with watching(bn_updates(model, per="optimizer_step"), layers=1):
        epoch(model, 1, 1, 1)


def test_accumulation_over_several_steps_is_counted_and_weighed_for_each() -> None:
    model = Net()
    (cause,) = broken(model, lambda: epoch(model, 4, 4)).causes
    assert "4 updates with momentum 0.1 weigh the new batches" in cause.why
    assert 'pass times=4, per="optimizer_step", and for micro-batches use momentum' in cause.fix
    assert "(1/4) = 0.026" in cause.fix
    with watching(bn_updates(model, times=4, per="optimizer_step"), layers=1):
        epoch(model, 4, 4)


def test_no_number_for_each_step_is_advised_where_two_optimizers_step_after_two_forwards() -> None:
    model = Net()

    def two_optimizers() -> None:
        parts = [model.linear, model.head]
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]
        for seed in range(2):
            model(values(seed)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()

    (cause,) = broken(model, two_optimizers).causes
    assert 'per="optimizer_step"' not in cause.fix
    assert "run what is not meant to train in eval" in cause.fix


def test_a_second_forward_in_some_steps_is_not_told_to_count_for_each_step() -> None:
    model = Net()
    (cause,) = broken(model, lambda: epoch(model, 1, 2, 1)).causes
    assert 'per="optimizer_step"' not in cause.fix
    assert "run what is not meant to train in eval" in cause.fix


def test_a_batch_that_comes_back_after_another_is_told_as_used_before() -> None:
    model = nn.BatchNorm1d(3)
    first, second = torch.randn(2, 8, 3)
    with pytest.raises(InvariantBroken, match="already used"), bn_updates(model, times=3):
        list(map(model, (first, second, first)))
    with bn_updates(model, times=3) as guard:
        list(map(model, torch.randn(3, 8, 3)))
    assert guard.verdict is not None
    assert guard.verdict.holds


def test_an_update_that_leaves_the_statistics_as_they_were_counts() -> None:
    model = nn.BatchNorm1d(2, momentum=0.5)
    batch = torch.tensor([[-1.0, 1.0], [0.0, 0.0], [1.0, -1.0]])  # mean 0, variance 1
    with watching(bn_updates(model), layers=1):
        model(batch)
    assert told(broken(model, lambda: model(batch), times=2)) == [("", "1 update, expected 2")]
