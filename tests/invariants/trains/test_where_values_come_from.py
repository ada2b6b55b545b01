"""Values that no step of training led to are no training, however far they moved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from pytest_bninvariants import trains
from tests.invariants.trains.steps import Net, batch, broken, causes, step
from tests.watching import watching

HEAD = ("head.weight", "head.bias")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def optimizer(net: Net) -> Optimizer:
    return SGD(net.parameters(), lr=0.1, momentum=0.9)


def backward(net: nn.Module) -> None:
    net.zero_grad()
    net(batch()).square().mean().backward()


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_checkpoint_that_is_loaded_after_the_last_step_is_no_training(
    net: Net, optimizer: Optimizer, steps: int, assign: bool
) -> None:
    other = Net().state_dict()

    def run() -> None:
        for _ in range(steps):
            step(net, optimizer)
        net.head.load_state_dict({name: other[f"head.{name}"] for name in ("weight", "bias")})

    (cause,) = broken(net, run, "head").causes
    assert (cause.name, cause.layers) == ("loaded", HEAD)
    assert cause.place is not None
    assert (cause.place.function, cause.place.call) == ("run", "Linear.load_state_dict()")


@pytest.mark.parametrize("assign", [True, False])
def test_a_checkpoint_of_an_earlier_step_may_be_loaded_at_the_end(
    net: Net, optimizer: Optimizer, assign: bool
) -> None:
    with watching(trains(net), layers=4):
        for number in range(4):
            step(net, optimizer)
            if number == 1:
                best = copy.deepcopy(net.state_dict())
        net.load_state_dict(best, assign=assign)


def test_a_checkpoint_may_be_loaded_before_the_first_step(net: Net, optimizer: Optimizer) -> None:
    with watching(trains(net), layers=4):
        net.load_state_dict(Net().state_dict())
        step(net, optimizer)


def reset(net: Net) -> None:
    net.head.reset_parameters()


@torch.no_grad()
def add_noise(net: Net) -> None:
    for parameter in net.head.parameters():
        parameter.add_(torch.randn_like(parameter))


def rebind(net: Net) -> None:
    net.head.weight.data = torch.randn(4, 8)
    net.head.bias.data = torch.randn(4)


@pytest.mark.parametrize("write", [reset, add_noise, rebind])
@pytest.mark.parametrize("with_backward", [True, False])
def test_what_is_initialised_or_noise_is_no_training(
    net: Net, write: Callable[[Net], None], with_backward: bool
) -> None:
    def run() -> None:
        if with_backward:
            backward(net)
        write(net)

    verdict = broken(net, run, "head.weight")
    assert causes(verdict) == {"in-place": ("head.weight",)}
    assert (
        verdict.changes[0].text == "moved outside of any step; no optimizer that holds it stepped"
    )


def test_noise_beside_an_optimizer_that_holds_other_parameters_is_no_training(net: Net) -> None:
    optimizer = SGD(net.body.parameters(), lr=0.1)

    def run() -> None:
        step(net, optimizer)
        add_noise(net)

    assert "head.weight" in causes(broken(net, run))["in-place"]


def test_noise_on_what_an_optimizer_moves_is_training(net: Net, optimizer: Optimizer) -> None:
    with watching(trains(net), layers=4):
        step(net, optimizer)
        add_noise(net)


@torch.no_grad()
def descend(net: Net, rate: float = 0.1) -> None:
    for parameter in net.parameters():
        assert parameter.grad is not None
        parameter -= rate * parameter.grad


@torch.no_grad()
def descend_as_adam(net: Net, moments: dict[str, Tensor]) -> None:
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        old = moments.get(name, torch.zeros_like(parameter))
        moments[name] = 0.9 * old + 0.1 * parameter.grad
        parameter -= 0.01 * moments[name].sign()


def descend_by_rebinding(net: Net) -> None:
    for module in (net.body, net.head):
        for name, parameter in [*module.named_parameters()]:
            assert parameter.grad is not None
            setattr(module, name, nn.Parameter((parameter - 0.1 * parameter.grad).detach()))


def descend_by_returned_gradients(net: Net) -> None:
    parameters = [*net.parameters()]
    gradients = torch.autograd.grad(net(batch()).square().mean(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=0.1)


def descend_in_a_transform(net: Net) -> None:
    def loss(state: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, state, (x,)).square().mean()

    state = {name: each.detach() for name, each in net.named_parameters()}
    gradients = torch.func.grad(loss)(state, batch())
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.sub_(gradients[name], alpha=0.1)


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize(
    "take",
    [
        lambda net: (backward(net), descend(net)),
        lambda net: (backward(net), descend(net), net.zero_grad()),
        lambda net, moments=None: (backward(net), descend_as_adam(net, {})),
        descend_by_returned_gradients,
        descend_in_a_transform,
    ],
    ids=["sgd", "sgd, gradients dropped", "adam", "returned gradients", "a transform"],
)
def test_steps_of_the_users_own_code_along_gradients_are_training(
    net: Net, take: Callable[[Net], object], times: int
) -> None:
    with watching(trains(net), layers=4):
        for _ in range(times):
            take(net)


def test_one_step_with_gradients_from_before_the_block_is_training(net: Net) -> None:
    backward(net)
    with watching(trains(net), layers=4):
        descend(net)


def test_a_step_that_binds_new_parameters_is_training(net: Net) -> None:
    with watching(trains(net), layers=4):
        backward(net)
        descend_by_rebinding(net)


def test_a_copy_that_another_optimizer_steps_is_training(net: Net) -> None:
    masters = [each.detach().clone().requires_grad_() for each in net.parameters()]
    optimizer = Adam(masters, lr=0.1)
    with watching(trains(net), layers=4):
        backward(net)
        for master, parameter in zip(masters, net.parameters(), strict=True):
            master.grad = parameter.grad
        net.zero_grad()
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, net.parameters(), strict=True):
                parameter.copy_(master)


def test_steps_of_a_copy_may_lead_anywhere_after_steps_of_the_model(
    net: Net, optimizer: Optimizer
) -> None:
    with watching(trains(net), layers=4):
        step(net, optimizer)
        masters = [torch.randn_like(each).requires_grad_() for each in net.parameters()]
        for master in masters:
            master.grad = torch.ones_like(master)
        SGD(masters, lr=0.1).step()
        with torch.no_grad():
            for master, parameter in zip(masters, net.parameters(), strict=True):
                parameter.copy_(master)


def test_an_optimizer_that_holds_more_than_the_model_hides_no_initialisation(net: Net) -> None:
    optimizer = SGD([*net.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1)

    def run() -> None:
        step(net, optimizer)
        nn.init.normal_(net.head.weight)

    assert causes(broken(net, run)) == {"in-place": ("head.weight",)}


@pytest.mark.parametrize("what", ["module", "parameter"])
def test_what_is_replaced_in_the_step_trains_if_an_optimizer_holds_the_new_one(
    net: Net, optimizer: Optimizer, what: str
) -> None:
    def replace() -> None:
        if what == "module":
            net.head = nn.Linear(8, 4)
        else:
            net.head.weight = nn.Parameter(torch.randn(4, 8))
            net.head.bias = nn.Parameter(torch.randn(4))

    def with_the_old_optimizer() -> None:
        replace()
        step(net, optimizer)

    (cause,) = broken(net, with_the_old_optimizer).causes
    assert (cause.name, cause.layers) == ("not-in-optimizer", HEAD)
    assert "are other tensors than at the start of the block" in cause.why
    assert "create the optimizer after head.weight and head.bias" in cause.fix
    with watching(trains(net), layers=4):
        replace()
        step(net, SGD(net.parameters(), lr=0.1))
    with watching(trains(net), layers=4):
        replace()
        optimizer.add_param_group({"params": [*net.head.parameters()]})
        step(net, optimizer)


def test_the_best_copy_of_a_part_may_take_its_place_at_the_end(
    net: Net, optimizer: Optimizer
) -> None:
    with watching(trains(net), layers=4):
        step(net, optimizer)
        best = copy.deepcopy(net.head)
        step(net, optimizer)
        net.head = best


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_becomes_nan_or_infinite_is_no_training(
    net: Net, optimizer: Optimizer, value: float
) -> None:
    def overflow() -> None:
        (net(batch()) * value).sum().backward()
        optimizer.step()

    verdict = broken(net, overflow)
    assert set(causes(verdict)) == {"not-finite"}
    assert "values became NaN or infinite" in verdict.changes[0].text


def test_what_was_infinite_before_may_stay_so(net: Net) -> None:
    with torch.no_grad():
        net.head.bias[0] = float("-inf")
    optimizer = SGD(net.parameters(), lr=0.1)
    with watching(trains(net), layers=4):
        net(batch())[:, 1:].square().mean().backward()
        optimizer.step()


def test_statistics_that_became_nan_are_told_beside_the_parameters() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = SGD(net[1].parameters(), lr=0.1)

    def overflow() -> None:
        net(torch.full((4, 3), float("nan")))
        step(net[1], optimizer)

    net[0].requires_grad_(False)
    verdict = broken(net, overflow)
    assert causes(verdict) == {"not-finite": ("0",)}
    assert "running_mean: 3 of 3 values are not finite" in verdict.changes[0].text


def test_a_moving_average_that_is_named_moves(net: Net, optimizer: Optimizer) -> None:
    both = nn.ModuleDict({"online": net, "target": copy.deepcopy(net).requires_grad_(False)})
    with watching(trains(both, "target"), layers=4):
        step(net, optimizer)
        with torch.no_grad():
            for target, online in zip(both["target"].parameters(), net.parameters(), strict=True):
                target.lerp_(online, 0.1)


def test_no_step_and_a_parameter_without_an_optimizer_have_advice_of_their_own(net: Net) -> None:
    (cause,) = broken(net, partial(backward, net)).causes
    assert cause.name == "not-in-optimizer"
    assert cause.fix.startswith("call optimizer.step() after backward()")
    optimizer = SGD(net.head.parameters(), lr=0.1)
    (cause,) = broken(net, partial(step, net, optimizer)).causes
    assert cause.layers == ("body.weight", "body.bias")
    assert "give body.weight and body.bias to the optimizer" in cause.fix
    assert "name only what is to train" in cause.fix


def hold_as_buffer(layer: nn.Linear) -> None:
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)


@pytest.mark.parametrize(
    ("lose", "why"),
    [
        (lambda m: setattr(m, "head", nn.Identity()), "head was Linear and is another module now"),
        (lambda m: delattr(m.head, "weight"), "head has no weight now"),
        (lambda m: hold_as_buffer(m.head), "head holds it as a buffer now"),
    ],
)
def test_a_parameter_that_is_gone_is_told_as_that(lose: Callable[[Net], None], why: str) -> None:
    net = Net()
    verdict = broken(net, lambda: lose(net))
    (cause, other) = verdict.causes
    assert cause.name == "replaced"
    assert f"of the model now: {why}" in cause.why
    assert cause.fix.startswith("replace or convert modules before the guarded step")
    assert {c.text for c in verdict.changes if c.name in cause.layers} == {"is no parameter now"}
    assert other.name == "not-in-optimizer"


def test_a_bn_layer_that_another_module_replaces_is_told_beside_its_parameters() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def run() -> None:
        step(net, torch.optim.SGD(net.parameters(), lr=0.1))
        net[1] = nn.BatchNorm1d(3)

    verdict = broken(net, run)
    assert causes(verdict) == {"not-in-optimizer": ("1.weight", "1.bias"), "replaced": ("1",)}
    assert verdict.causes[1].why == "1 was BatchNorm1d and is another module now: BatchNorm1d"
    assert verdict.changes[-1].text == "is another module now: BatchNorm1d"


@pytest.mark.parametrize("all_nan", [True, False])
def test_a_nan_that_is_cast_to_another_nan_has_not_trained(all_nan: bool) -> None:
    net = nn.Linear(2, 2)
    nan = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    net.bias.data[: 2 if all_nan else 1] = nan

    def run() -> None:
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        net.half().float()

    net.weight.requires_grad_(False)
    net.bias.grad = torch.tensor([torch.nan, torch.nan if all_nan else 1.0])
    if all_nan:
        assert causes(broken(net, run)) == {"not-finite": ("bias",)}
    else:
        with trains(net):
            run()
