"""Gradients of micro-batches add up where no layer mixes samples, and the reason is told if not."""

from __future__ import annotations

import math
import os
import random
import re
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from pytest_bninvariants import GateError, InvariantBroken, Verdict, accumulates
from tests.engine import Net, everything_wrapped


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], ignore_index=-1)


def broken(*args: Any, **options: Any) -> Verdict:
    with pytest.raises(InvariantBroken) as failure:
        accumulates(*args, **options)
    return failure.value.verdict


def around(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv1d(2, 4, 1), norm, nn.ReLU(), nn.Conv1d(4, 2, 1))


@pytest.fixture
def seven() -> Tensor:
    return torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(2))


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


@pytest.mark.parametrize("error", [1e-6, 1e-9, 1e-11])
def test_an_error_far_below_what_float32_shows_is_seen(
    net: Net, seven: Tensor, error: float
) -> None:
    def slightly_off(model: nn.Module, batch: Tensor) -> Tensor:
        return squares(model, batch) * (1 + error * len(batch))

    assert broken(net, seven, 2, loss=slightly_off).changed_tensors


def test_batch_statistics_of_many_values_differ_little_and_are_seen() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), nn.Tanh())
    batch = torch.randn(20_000, 1, 50, generator=torch.Generator().manual_seed(0))
    verdict = broken(model, batch, 2, loss=squares)
    assert verdict.causes[0].name == "training-mode"


@pytest.mark.parametrize("seed", range(8))
def test_a_gradient_that_is_zero_by_symmetry_is_not_blamed_for_its_rounding(seed: int) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:  # softmax does not see a bias of all keys
            return (self.query(x) @ self.key(x).mT).softmax(-1) @ x

    torch.manual_seed(seed)
    assert accumulates(Attention(), torch.randn(5, 3, 4), 2, loss=squares).holds


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


def test_dropout_is_refused_by_name_and_fine_in_eval(seven: Tensor) -> None:
    model = around(nn.Dropout(0.5))
    with pytest.raises(GateError, match=r"random numbers.*in training mode is 1 \(Dropout\)"):
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
    with pytest.raises(GateError, match="nothing of the model is trainable"):
        accumulates(net.requires_grad_(False), seven, 2, loss=squares)


def test_a_loss_that_does_not_use_its_model_is_refused(net: Net, seven: Tensor) -> None:
    other = Net().double().eval()
    with pytest.raises(GateError, match="reaches no trainable parameter"):
        accumulates(net, seven, 2, loss=lambda model, batch: squares(other, batch.double()))


def test_gradients_that_are_all_zero_say_nothing(net: Net, seven: Tensor) -> None:
    with pytest.raises(GateError, match="all gradients are 0"):
        accumulates(net, seven, 2, loss=lambda model, batch: squares(model, batch) * 0)


def test_a_batch_that_counts_nothing_is_refused(net: Net, seven: Tensor) -> None:
    with pytest.raises(GateError, match=r"counts more than 0; got 0\.0 \(float\)"):
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


def test_constants_that_a_forward_makes_have_the_right_dtype(net: Net, seven: Tensor) -> None:
    def shifted(model: nn.Module, batch: Tensor) -> Tensor:
        return F.linear(model(batch), torch.full((1, 1), 0.5)).square().mean()

    assert accumulates(net, seven, 2, loss=shifted).holds


CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda y: y.float(),
    "half": lambda y: y.half().to(y.dtype),
    "to": lambda y: y.to(torch.float32),
    "to by keyword": lambda y: y.to(dtype=torch.bfloat16),
    "type": lambda y: y.type(torch.float32),
    "an operator's dtype": lambda y: y.softmax(-1, dtype=torch.float32),
    "a constant": lambda y: y @ torch.eye(4, dtype=torch.float32),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_what_a_model_casts_itself_is_computed_in_float64_too(
    cast: Callable[[Tensor], Tensor],
) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(cast(model(batch[0])), batch[1])

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    batch = torch.randn(11, 3), torch.arange(11) % 4
    assert accumulates(model, batch, 3, loss=loss).holds
    assert broken(model.train(), batch, 3, loss=loss).changed_tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_dtypes_are_judged_alike(net: Net, seven: Tensor, dtype: Any) -> None:
    assert accumulates(net.to(dtype), seven.to(dtype), 3, loss=squares).holds
    assert not broken(net.train(), seven.to(dtype), 3, loss=squares).holds


@pytest.mark.parametrize("count", [None, "7", True, math.nan, torch.ones(2), 1j])
def test_a_batch_counts_a_number(net: Net, seven: Tensor, count: Any) -> None:
    told = re.escape("accumulates(weight=...): what a batch counts is a number; got ")
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
    with pytest.raises(GateError, match=r"cannot judge: weight\(batch\) raised IndexError"):
        accumulates(net, seven, 2, loss=squares, weight=lambda batch: batch[99])


@pytest.mark.parametrize(
    ("give", "got"),
    [
        (lambda y: 1.0, r"1\.0 \(float\)"),
        (lambda y: None, r"None \(NoneType\)"),
        (lambda y: (y.sum(), y), r"\(tensor.* \(tuple\)"),
        (lambda y: y, r"tensor.* \(Tensor\)"),
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
