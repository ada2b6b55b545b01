"""Gradients of micro-batches add up where no layer mixes samples; if not, the reason is told."""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants import GateError, InvariantBroken, accumulates, guard_registry
from tests.engine import Net, everything_wrapped
from tests.invariants.accumulates.losses import around, broken, cross_entropy, squares


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6, 7])
def test_in_eval_gradients_add_up_in_however_unequal_parts(net: Net, seven: Tensor, k: int) -> None:
    verdict = accumulates(net, seven, k, loss=squares)
    assert verdict.holds
    assert verdict.layers == len(list(net.parameters()))


def test_in_training_mode_they_do_not_and_the_layers_are_named(net: Net, seven: Tensor) -> None:
    verdict = broken(net.train(), seven, 3, loss=squares)
    assert set(verdict.changed_tensors) >= {"backbone.conv.weight", "head.weight"}
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("training-mode", ("backbone.bn", "neck"))
    assert "GroupNorm" in cause.fix


def test_one_layer_in_training_mode_is_the_only_one_named(net: Net, seven: Tensor) -> None:
    net.neck.train()
    assert broken(net, seven, 2, loss=squares).causes[0].layers == ("neck",)


def test_a_mode_that_the_loss_sets_counts(net: Net, seven: Tensor) -> None:
    def trains(model: nn.Module, batch: Tensor) -> Tensor:
        return squares(model.train(), batch)

    (cause,) = broken(net, seven, 2, loss=trains).causes
    assert cause.name == "training-mode"
    assert not net.training


def test_the_failure_begins_with_the_news(net: Net, seven: Tensor) -> None:
    net.neck.train()
    with pytest.raises(InvariantBroken) as failure:
        accumulates(net, seven, 2, loss=squares)
    lines = str(failure.value).splitlines()
    assert lines[0] == (
        "4 of 8 gradients do not add up: backbone.conv.weight, backbone.bn.weight and 2 more "
        "(training-mode)"
    )
    assert "accumulates(k=2) on Net" in lines
    assert any(line.startswith("  gradient ") for line in lines)
    assert "one batch of 7, and 2 micro-batches of 3 or 4" in str(failure.value)


def test_a_layer_without_stored_statistics_mixes_samples_in_eval_too(seven: Tensor) -> None:
    model = around(nn.BatchNorm1d(4, track_running_stats=False)).eval()
    (cause,) = broken(model, seven, 2, loss=squares).causes
    assert (cause.name, cause.layers) == ("no-stored-statistics", ("1",))


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(2, 4),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        nn.LayerNorm([4, 5]),
        nn.Identity(),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_that_do_not_mix_samples_hold_in_training_mode(
    norm: nn.Module, seven: Tensor
) -> None:
    assert accumulates(around(norm).train(), seven, 3, loss=squares).holds


def test_frozen_batch_norm_holds_in_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), torchvision.ops.FrozenBatchNorm2d(4)).train()
    assert accumulates(model, torch.randn(4, 3, 2, 2), 2, loss=squares).holds


def test_a_sum_is_no_mean_unless_weighed_as_one(net: Net, seven: Tensor) -> None:
    def total(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sum()

    verdict = broken(net, seven, 3, loss=total)
    assert [cause.name for cause in verdict.causes] == ["not-a-mean"]
    assert "the loss is" in verdict.notes[0]
    assert accumulates(net, seven, 3, loss=total, weight=lambda batch: 1).holds


def test_a_mean_over_what_is_not_ignored_must_be_weighed_so() -> None:
    model = nn.Linear(3, 5)
    batch = torch.randn(6, 3), torch.tensor([1, -1, 2, -1, -1, 4])
    verdict = broken(model, batch, 2, loss=cross_entropy)
    assert [cause.name for cause in verdict.causes] == ["not-a-mean"]
    valid: Callable[[Any], Any] = lambda batch: (batch[1] >= 0).sum()  # noqa: E731
    assert accumulates(model, batch, 2, loss=cross_entropy, weight=valid).holds


@pytest.mark.parametrize("training", [False, True])
def test_everything_stays_as_it_is(net: Net, seven: Tensor, training: bool) -> None:
    net.train(training)
    squares(net, seven).backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    values, wrapped = seven.clone(), everything_wrapped()
    before = torch.get_rng_state(), random.getstate(), torch.get_default_dtype()

    def greedy(model: nn.Module, batch: Tensor) -> Tensor:
        torch.rand(1), random.random()
        return squares(model, batch.mul_(2))

    with pytest.raises((InvariantBroken, GateError)):
        accumulates(net.train(training), seven, 2, loss=greedy)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), torch.get_default_dtype())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, grads[name]) for name, p in net.named_parameters())
    assert torch.equal(seven, values)
    assert everything_wrapped() == wrapped
    assert net.training is training


Sample = namedtuple("Sample", ["image", "label"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: {"image": x, "label": y, "scale": 2.0, "temperature": torch.tensor(1.0)},
        lambda x, y: Sample(x, y)._asdict() | {"name": "train"},
    ],
)
def test_nests_are_cut_where_there_are_samples(wrap: Callable[[Tensor, Tensor], Any]) -> None:
    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(model(batch["image"]) * batch.get("scale", 1), batch["label"])

    batch = wrap(torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0]))
    assert accumulates(nn.Linear(3, 4), batch, 2, loss=loss).holds


def test_named_tuples_keep_their_names() -> None:
    def loss(model: nn.Module, batch: Sample) -> Tensor:
        return F.cross_entropy(model(batch.image), batch.label)

    batch = Sample(torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0]))
    assert accumulates(nn.Linear(3, 4), batch, 2, loss=loss).holds


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(net: Net, seven: Tensor, reentrant: bool) -> None:
    def checkpointed(model: nn.Module, batch: Tensor) -> Tensor:
        x = batch.requires_grad_()
        return (
            checkpoint(model, x, use_reentrant=reentrant, preserve_rng_state=False).square().mean()
        )

    assert accumulates(net, seven, 3, loss=checkpointed).holds
    assert broken(net.train(), seven, 3, loss=checkpointed).causes[0].layers == (
        "backbone.bn",
        "neck",
    )


def test_tied_unused_empty_and_sparse_parameters_are_judged_too() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 3, sparse=True)
            self.out, self.tied, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(2, 2)
            self.tied.weight = self.out.weight
            self.empty = nn.Parameter(torch.empty(0))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.tied(self.out(self.embed(tokens))).sum(1)

    verdict = accumulates(Odd(), torch.randint(6, (4, 5)), 3, loss=squares)
    assert verdict.holds
    assert verdict.layers == 6


@pytest.mark.usefixtures("_compiler_is_fresh")
def test_layers_in_compiled_code_are_named_by_their_mode(net: Net, seven: Tensor) -> None:
    model = torch.compile(net.train(), backend="eager")
    (cause,) = broken(model, seven, 2, loss=squares).causes
    assert [name.removeprefix("_orig_mod.") for name in cause.layers] == ["backbone.bn", "neck"]


@pytest.fixture
def _compiler_is_fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_resnet_adds_up_when_frozen_and_differs_everywhere_when_not() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    batch = torch.randn(6, 3, 32, 32), torch.randint(10, (6,))
    assert accumulates(model.eval(), batch, 4, loss=cross_entropy).layers == 62
    verdict = broken(model.train(), batch, 2, loss=cross_entropy)
    assert len(verdict.changed_tensors) == 62
    assert len(verdict.causes[0].layers) == 20


def test_two_samples_can_be_cut_and_the_verdict_is_handed_on(net: Net, seven: Tensor) -> None:
    with guard_registry.collect_findings():
        held = accumulates(net, seven[:2], 2, loss=squares)
        assert guard_registry.verdicts is not None
        assert [each.guard for each in guard_registry.verdicts] == [held.guard]
        broken(net.train(), seven, 2, loss=squares)
        assert [each.holds for each in guard_registry.verdicts] == [True, False]
        guard_registry.verdicts.clear()
        assert guard_registry.findings is not None
        guard_registry.findings.clear()
