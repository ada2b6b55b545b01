"""Every change that was seen to happen has its cause, and the fix that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen, frozen_bn


def verdict_of(
    model: Any, step: Callable[[], object], *modules: str, guard: Any = frozen_bn
) -> Verdict:
    with pytest.raises(FrozenStateChanged) as caught, guard(model, *modules):
        step()
    return caught.value.verdict


def causes(verdict: Verdict) -> dict[str, tuple[str, ...]]:
    return {cause.name: cause.layers for cause in verdict.causes}


def test_training_mode_from_the_start(net: Any, batch: Tensor) -> None:
    net.train().requires_grad_(False)
    verdict = verdict_of(net, lambda: net(batch))
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("training-mode", ("backbone.bn", "neck"))
    assert "each normalised 1 batch with batch statistics" in cause.why
    assert "requires_grad=False does not stop running statistics" in cause.why
    assert cause.fix == "call .eval() on backbone.bn and neck before the step"
    assert cause.place is None


@pytest.mark.parametrize("trainable", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_requires_grad_is_spoken_of_only_where_all_parameters_of_a_layer_are_frozen(
    net: Any, batch: Tensor, trainable: tuple[str, ...]
) -> None:
    for name, parameter in net.neck.train().named_parameters():
        parameter.requires_grad_(name in trainable)
    (cause,) = verdict_of(net, lambda: net(batch), "neck").causes
    assert ("requires_grad=False does not stop" in cause.why) == (not trainable)


def test_training_mode_that_a_train_call_insists_on(net: Any, batch: Tensor) -> None:
    net.train()
    verdict = verdict_of(net, lambda: net.train()(batch))
    (cause,) = verdict.causes
    assert cause.name == "training-mode"
    assert cause.place is not None
    assert cause.place.call == "Net.train(True)"
    assert cause.fix.startswith("call .eval() on backbone.bn and neck after every model.train()")


def test_an_overridden_train_that_never_ran_is_to_be_called() -> None:
    class Mended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.BatchNorm1d(3))

        def forward(self, batch: Tensor) -> Tensor:
            return self.backbone(batch)

        def train(self, mode: bool = True) -> Mended:
            super().train(mode)
            self.backbone.eval()
            return self

    model = Mended()
    verdict = verdict_of(model, lambda: model(torch.randn(4, 3)))
    (cause,) = verdict.causes
    assert cause.name == "training-mode"
    assert cause.fix == (
        "call .eval() on backbone.0 before the step; if Mended.train() is to keep it in eval, call "
        "that once after construction, since a new model is in training mode"
    )
    model.train()
    with frozen_bn(model):
        model.train()(torch.randn(4, 3))


def test_a_flip_out_of_eval(net: Any, batch: Tensor) -> None:
    verdict = verdict_of(net, lambda: [net.train()(batch) for _ in range(3)])
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("mode-flip", ("backbone.bn", "neck"))
    assert "were in eval, then put in training mode, and normalised 3 batches" in cause.why
    assert cause.place is not None
    assert cause.place.call == "Net.train(True)"


def test_layers_with_different_causes_are_told_apart(net: Any, batch: Tensor) -> None:
    net.backbone.train()

    def step() -> None:
        net.neck.train()
        net(batch)

    verdict = verdict_of(net, step)
    assert causes(verdict) == {"training-mode": ("backbone.bn",), "mode-flip": ("neck",)}


def test_a_layer_without_stored_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)).eval()
    verdict = verdict_of(model, lambda: model(torch.randn(4, 2)))
    (cause,) = verdict.causes
    assert (cause.name, cause.layers) == ("no-stored-statistics", ("0",))
    assert "0 has no running statistics, so it normalised 1 batch" in cause.why
    assert "track_running_stats=True" in cause.fix
    assert "allow_batch_stats=True" in cause.fix


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda m: delattr(m, "neck"), "neck was BatchNorm1d and is gone"),
        (
            lambda m: setattr(m, "neck", nn.BatchNorm1d(4)),
            "neck was BatchNorm1d and is another module now: BatchNorm1d in training mode",
        ),
        (lambda m: setattr(m, "neck", nn.Identity()), "is another module now: Identity"),
        (
            lambda m: setattr(m.neck, "running_mean", torch.ones(3)),
            "neck.running_mean is another tensor now",
        ),
        (lambda m: m.neck.half(), "neck.running_mean was cast"),
        (lambda m: delattr(m.neck, "bias"), "neck.bias is gone"),
        (lambda m: m.neck.register_buffer("more", torch.ones(1)), "neck.more is new"),
        (lambda m: m.add_module("more", nn.BatchNorm1d(1)), "more.running_mean is new"),
        (
            lambda m: setattr(m.neck, "running_var", torch.ones(4)),
            "neck.running_var has another shape",
        ),
    ],
)
def test_what_was_replaced_is_said(net: Any, step: Callable[[Any], object], why: str) -> None:
    verdict = verdict_of(net, lambda: step(net))
    (cause,) = verdict.causes
    assert cause.name == "replaced"
    assert why in cause.why
    assert "before the guarded step" in cause.fix


@pytest.mark.parametrize("replaces", [True, False])
def test_a_batch_before_the_step_is_advised_where_it_is_all_that_is_missing(replaces: bool) -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3).eval())

    def step() -> None:
        model(torch.ones(2, 2))
        if replaces:
            model[1].running_mean = torch.ones(3)

    (cause,) = verdict_of(model, step, guard=frozen).causes
    assert "0.weight was uninitialised until its first batch" in cause.why
    assert ("run a batch before the guarded step" in cause.fix) != replaces


def test_a_long_list_of_what_was_replaced_is_cut(net: Any) -> None:
    verdict = verdict_of(net, lambda: net.double(), guard=frozen)
    (cause,) = verdict.causes
    assert cause.layers == ("backbone.conv", "backbone.bn", "neck", "head")
    assert cause.why.count(";") == 3
    assert cause.why.endswith("more")


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_a_cast_there_and_back_is_one_cause(net: Any, narrow: torch.dtype) -> None:
    def step() -> None:
        net.to(narrow)
        net.float()

    verdict = verdict_of(net, step, guard=frozen)
    (cause,) = verdict.causes
    assert (cause.name, cause.tensors) == ("replaced", verdict.changed_tensors)
    name = str(narrow).removeprefix("torch.")
    assert cause.why.endswith(f"more were cast to {name} and back")
    assert "cast before the guarded step" in cause.fix


def test_an_initialisation_is_no_cast_though_old_values_round_to_the_new(net: Any) -> None:
    net.neck.weight.data.fill_(1.0000001)
    verdict = verdict_of(net, lambda: nn.init.ones_(net.neck.weight))
    assert causes(verdict) == {"in-place": ("neck",)}


def test_a_step_of_an_optimizer_is_no_cast(net: Any) -> None:
    net.head.bias.data.fill_(1.1)
    rounded = net.head.bias.detach().bfloat16().float()
    net.head.bias.grad = net.head.bias.detach() - rounded
    optimizer = torch.optim.SGD([net.head.bias], lr=1.0)
    verdict = verdict_of(net, optimizer.step, guard=frozen)
    assert net.head.bias == rounded
    assert causes(verdict) == {"gradient-step": ("head",)}


def test_training_mode_explains_a_layer_better_than_a_rebound_buffer(
    net: Any, batch: Tensor
) -> None:
    def step() -> None:
        net.neck.running_mean = net.neck.running_mean.clone()
        net.neck.train()
        net(batch)

    assert causes(verdict_of(net, step)) == {"mode-flip": ("neck",)}


def test_a_parameter_that_moved_is_not_put_down_to_the_mode(net: Any, batch: Tensor) -> None:
    def step() -> None:
        net(batch).sum().backward()
        torch.optim.SGD([net.neck.weight], lr=1.0).step()

    verdict = verdict_of(net, step)
    assert verdict.changed_tensors == ("neck.weight",)
    assert not {"training-mode", "mode-flip", "no-stored-statistics"} & causes(verdict).keys()


def test_weight_decay_by_an_optimizer_that_calls_its_parents_step_is_told(
    net: Any, batch: Tensor
) -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.mul_(0.9)
            return super().step(closure)

    torch.optim.SGD(net.parameters())
    optimizer = Own([net.neck.weight], lr=0.1, weight_decay=0.1)

    def step() -> None:
        net(batch)
        optimizer.step()

    assert causes(verdict_of(net, step)) == {"weight-decay": ("neck",)}


def test_a_parameter_that_moved_in_training_mode_is_not_put_down_to_the_mode(
    net: Any, batch: Tensor
) -> None:
    guard = frozen_bn(net.train(), buffers=False)
    optimizer = torch.optim.SGD([net.neck.weight], lr=1.0)
    net.neck.weight.grad = torch.ones(3)
    guard.start()
    net(batch)
    optimizer.step()
    verdict = guard.finish()
    assert verdict.changed_tensors == ("neck.weight",)
    assert not {"training-mode", "mode-flip"} & causes(verdict).keys()


def test_a_layer_in_training_mode_that_never_ran_is_not_put_down_to_the_mode(net: Any) -> None:
    def step() -> None:
        net.train()
        net.neck.running_mean += 1

    assert not {"training-mode", "mode-flip"} & causes(verdict_of(net, step)).keys()


def test_a_write_between_batches_in_eval_is_not_put_down_to_the_mode(
    net: Any, batch: Tensor
) -> None:
    def step() -> None:
        net(batch)
        net.neck.running_mean += 1

    assert not {"training-mode", "mode-flip"} & causes(verdict_of(net, step)).keys()


def test_batches_that_differ_between_layers_are_given_as_a_span(net: Any, batch: Tensor) -> None:
    def step() -> None:
        net(batch)
        net.backbone(batch)

    (cause,) = verdict_of(net.train(), step).causes
    assert "normalised 1 to 2 batches" in cause.why


def test_the_first_two_of_many_layers_are_named() -> None:
    model = nn.Sequential(*[nn.BatchNorm1d(2) for _ in range(5)])
    (cause,) = verdict_of(model, lambda: model(torch.randn(4, 2))).causes
    assert cause.layers == ("0", "1", "2", "3", "4")
    assert cause.why.startswith("0, 1 and 3 more")


def test_the_model_itself_may_be_the_layer() -> None:
    model = nn.BatchNorm1d(2)
    (cause,) = verdict_of(model, lambda: model(torch.randn(4, 2))).causes
    assert cause.layers == ("",)
    assert cause.why.startswith("the model normalised 1 batch")
    assert ".eval() on the model before" in cause.fix


def test_batches_of_which_some_are_compiled_are_not_counted() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[0].compile(backend="eager")
    (cause,) = verdict_of(model, lambda: model(torch.randn(4, 2))).causes
    assert (cause.name, cause.layers) == ("training-mode", ("0", "1"))
    assert "normalised with batch statistics, partly in compiled code" in cause.why


def test_compiled_batches_are_not_counted(net: Any, batch: Tensor) -> None:
    compiled = torch.compile(net.train(), backend="eager")
    compiled(batch)
    (cause,) = verdict_of(net, lambda: compiled(batch)).causes
    assert cause.name == "training-mode"
    assert "compiled code" in cause.why
