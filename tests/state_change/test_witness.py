"""What a witness saw of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.state_change.layer_activity import LayerActivity
from pytest_bninvariants.state_change.witness import Witness


@contextmanager
def watched(model: nn.Module, *modules: str, bn_only: bool = True) -> Iterator[Witness]:
    witness = Witness(model, select(model, Scope(modules=modules, bn_only=bn_only)))
    witness.start()
    try:
        yield witness
    finally:
        witness.stop()


def test_batches_are_counted_by_layer(net: Any, batch: Tensor) -> None:
    net.neck.train()
    with watched(net) as witness:
        for _ in range(3):
            net(batch)
    assert witness.layers.activity_of(net.neck).batches == 3
    assert witness.layers.activity_of(net.backbone.bn) == LayerActivity()


def test_a_batch_of_a_layer_with_two_names_is_counted_once() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            bn = self.bn
            return nn.functional.batch_norm(x, bn.running_mean, bn.running_var, training=True)

    fused = Fused()
    model = nn.Sequential(fused, fused.bn)
    with watched(model) as witness:
        model(torch.randn(4, 3))
    assert witness.layers.activity_of(fused.bn).batches == 2


def test_a_batch_in_eval_is_not_counted_and_one_after_a_flip_is(net: Any, batch: Tensor) -> None:
    with watched(net) as witness:
        net(batch)
        net.neck.train()
        net(batch)
        net.neck.eval()
        net(batch)
    activity = witness.layers.activity_of(net.neck)
    assert (activity.batches, activity.flipped) == (1, True)


def test_a_layer_in_training_mode_that_is_put_there_again_is_not_flipped(net: Any) -> None:
    net.train()
    with watched(net) as witness:
        net.train()
    activity = witness.layers.activity_of(net.neck)
    assert not activity.flipped
    assert activity.put_in_training is not None
    assert witness.layers.began_in_training(net.backbone.bn)
    assert witness.layers.began_in_training(net.neck)


def test_a_layer_that_is_flipped_and_back_without_a_batch_used_no_batch_statistics(
    net: Any, batch: Tensor
) -> None:
    with watched(net) as witness:
        net.train().eval()
        net(batch)
    activity = witness.layers.activity_of(net.neck)
    assert activity.flipped
    assert not activity.normalised
    assert not witness.used_batch_statistics(activity)


def test_the_call_before_the_first_batch_is_the_one_that_counts(net: Any, batch: Tensor) -> None:
    def first() -> None:
        net.train()

    def second() -> None:
        net.eval()
        net.train()

    def third() -> None:
        net.eval()
        net.train()

    with watched(net) as witness:
        for put_in_training in (first, second):
            put_in_training()
        net(batch)
        third()
    place = witness.layers.activity_of(net.neck).put_in_training
    assert place is not None
    assert place.function == "second"


def test_a_call_that_changes_nothing_is_not_the_one_that_counts(net: Any, batch: Tensor) -> None:
    def first() -> None:
        net.train()

    def second() -> None:
        net.train()

    with watched(net) as witness:
        first()
        second()
        net(batch)
    place = witness.layers.activity_of(net.neck).put_in_training
    assert place is not None
    assert place.function == "first"


def test_a_helper_that_sets_and_restores_a_mode_is_not_blamed(net: Any, batch: Tensor) -> None:
    net.train()

    def evaluated() -> None:
        was = net.neck.training
        net.neck.training = False
        net.neck(torch.ones(2, 3, 1))
        net.neck.training = was

    with watched(net) as witness:
        evaluated()
        net(batch)
    assert witness.layers.activity_of(net.neck).put_in_training is None


def test_unwatched_layers_are_not_placed(net: Any, batch: Tensor) -> None:
    with watched(net, "neck") as witness:
        net.train()
    assert witness.layers.activity_of(net.neck) != LayerActivity()
    assert witness.layers.activity_of(net.backbone.bn) == LayerActivity()


def test_recomputation_is_counted_as_it_runs(net: Any, batch: Tensor) -> None:
    net.train()
    with watched(net) as witness:
        x = batch.clone().requires_grad_()
        checkpoint(net.backbone, x, use_reentrant=False).sum().backward()
    assert witness.layers.activity_of(net.backbone.bn).batches == 2


def test_of_two_modules_under_one_name_the_first_that_ran_tells_what_was_done(
    net: Any, batch: Tensor
) -> None:
    old, new, idle = net.neck.train(), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with watched(net) as witness:
        net(batch)
        net.neck = new
        net(batch)
        net(batch)
    layers = witness.layers
    assert layers.activity_under_name(old, new).batches == 1
    assert layers.activity_under_name(old, idle).batches == 1
    assert layers.activity_under_name(idle, new).batches == 2
    assert layers.activity_under_name(None, new).batches == 2
    assert layers.activity_under_name(old, None).batches == 1


def test_the_first_of_two_copies_that_share_a_models_memory_is_named(
    net: Any, batch: Tensor
) -> None:
    class First(nn.Module):
        """It holds a layer of the model's memory."""

    class Second(First):
        """So does this."""

    with watched(net) as witness:
        for kind in (First, Second):
            copy_ = kind()
            copy_.mean = nn.Parameter(net.neck.running_mean, requires_grad=False)
            copy_.forward = lambda: None
            copy_()
    run = witness.outside.run_of(net.neck.running_mean)
    assert run is not None
    assert run.name == "a First outside the model"


def test_a_line_that_ran_a_layer_itself_is_not_replaced_by_one_that_ran_a_copy(
    net: Any, batch: Tensor
) -> None:
    def itself() -> None:
        net(batch)

    def its_copy() -> None:
        copy_(torch.ones(2, 3, 1))

    copy_ = nn.BatchNorm1d(3)
    copy_.running_mean = net.neck.running_mean
    net.neck.train()
    with watched(net) as witness:
        itself()
        its_copy()
    activity = witness.layers.activity_of(net.neck)
    assert activity.shared == ("running_mean",)
    assert activity.ran_at is not None
    assert activity.ran_at.function == "itself"


RAN: dict[str, tuple[Callable[[Any, Tensor], object], bool]] = {
    "nothing": (lambda net, batch: None, False),
    "forward": (lambda net, batch: net(batch), True),
    "head": (lambda net, batch: net.head(torch.ones(1, 3)), False),
    "a watched layer": (lambda net, batch: net.neck(torch.ones(2, 3, 1)), True),
    "mode": (lambda net, batch: net.train(), False),
    "other state": (lambda net, batch: net.head.weight.data.set_(torch.ones(1, 3)), False),
    "in place": (lambda net, batch: nn.init.zeros_(net.head.weight), True),
    "replaced": (
        lambda net, batch: setattr(net.head, "weight", nn.Parameter(torch.ones(1, 3))),
        True,
    ),
    "added": (lambda net, batch: net.register_buffer("extra", torch.ones(1)), True),
    "removed": (lambda net, batch: delattr(net, "head"), True),
    "module": (lambda net, batch: setattr(net, "head", nn.Linear(3, 1)), True),
    "own optimizer": (lambda net, batch: torch.optim.SGD(net.head.parameters()).step(), True),
    "other optimizer": (
        lambda net, batch: torch.optim.SGD(nn.Linear(1, 1).parameters()).step(),
        False,
    ),
    "mixed optimizer": (
        lambda net, batch: torch.optim.SGD(
            [{"params": nn.Linear(1, 1).parameters()}, {"params": net.head.parameters()}]
        ).step(),
        True,
    ),
}


@pytest.mark.parametrize(("step", "ran"), RAN.values(), ids=RAN)
def test_what_counts_as_having_run(
    net: Any, batch: Tensor, step: Callable[[Any, Tensor], object], ran: bool
) -> None:
    with watched(net) as witness:
        step(net, batch)
    assert witness.runs.saw_anything() == ran


def test_an_optimizer_that_holds_replaced_parameters_counts(net: Any) -> None:
    optimizer = torch.optim.SGD([net.neck.weight])
    old = net.neck.weight
    with watched(net) as witness:
        optimizer.step()
    assert witness.runs.saw_anything()
    assert net.neck.weight is old


@pytest.mark.parametrize(
    "script", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2, 2, 5))]
)
@pytest.mark.filterwarnings("ignore")
def test_a_scripted_model_that_runs_counts(
    net: Any, batch: Tensor, script: Callable[[Any], Any]
) -> None:
    model = script(net)
    with watched(model, bn_only=False) as witness:
        assert not witness.runs.saw_anything()
        model(batch)
    assert witness.runs.saw_anything()


def test_a_scripted_part_that_runs_counts() -> None:
    model = nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Sequential(nn.Linear(2, 2))))
    with watched(model, "1.0", bn_only=False) as witness:
        model[1](torch.ones(1, 2))
    assert witness.runs.saw_anything()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_layer_is_judged_by_its_mode_when_it_ran(
    net: Any, batch: Tensor, in_place: bool
) -> None:
    compiled: Any = net
    if in_place:
        net.compile(backend="eager")
    else:
        compiled = torch.compile(net, backend="eager")
    compiled(batch)
    for training in (False, True):
        net.train(training)
        with watched(net) as witness:
            compiled(batch)
        assert witness.used_batch_statistics(witness.layers.activity_of(net.neck)) == training


def test_a_witness_keeps_no_model_alive(net: Any, batch: Tensor) -> None:
    with watched(net.train()) as witness:
        old = net.neck
        net(batch)
        net.neck = nn.BatchNorm1d(3)
    assert witness.layers.activity_of(old).batches == 1
