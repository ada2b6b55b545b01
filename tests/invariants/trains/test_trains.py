"""`trains`: what does not move is named, and why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.optim import Adafactor
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torchvision.models import resnet18

from pytest_bninvariants import (
    FrozenStateChanged,
    GateError,
    Guard,
    InvariantBroken,
    InvariantHazard,
    Verdict,
    frozen,
    frozen_bn,
    trains,
)
from pytest_bninvariants.invariants.guard import GuardNeverEntered
from tests.watching import watching


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.body(batch))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def step(model: nn.Module, parameters: Any = None, scale: float = 1.0, **options: Any) -> None:
    optimizer = SGD(parameters or model.parameters(), **{"lr": 0.1} | options)
    (scale * model(torch.randn(8, 3)).square().mean()).backward()
    optimizer.step()


def broken(guard: Guard, run: Callable[[], object]) -> Verdict:
    with pytest.raises(InvariantBroken) as caught, guard:
        run()
    return caught.value.verdict


def causes(verdict: Verdict) -> dict[str, tuple[str, ...]]:
    return {cause.name: cause.layers for cause in verdict.causes}


def test_a_step_that_moves_all_holds(net: Net) -> None:
    for guard in (trains(net), trains(net, "head"), trains(net, "body", "head.weight")):
        with guard:
            step(net)


def test_statistics_that_move_are_enough_for_a_layer_and_not_for_its_weight(net: Net) -> None:
    verdict = broken(trains(net, "body"), lambda: net(torch.ones(2, 3)))
    names = ("body.0.weight", "body.1.weight", "body.1.bias")
    assert causes(verdict) == {"not-in-optimizer": names}
    assert "got no step: no optimizer stepped inside the guard" in verdict.causes[0].why


@pytest.mark.parametrize(("undo", "cause"), [("reset", "reset"), ("put back", "undone")])
def test_a_layer_whose_update_is_taken_back_is_told_with_why_and_fix(
    net: Net, undo: str, cause: str
) -> None:
    net(torch.randn(8, 3))
    saved = copy.deepcopy(net.body[1].state_dict())
    saved |= {"weight": net.body[1].weight, "bias": net.body[1].bias}

    def run() -> None:
        step(net)
        if undo == "reset":
            net.body[1].reset_running_stats()
        else:
            net.body[1].load_state_dict(saved)

    assert causes(broken(trains(net), run)) == {cause: ("body.1",)}


def test_a_layer_that_is_normalised_for_without_a_call_of_its_own_trains(net: Net) -> None:
    class Direct(Net):
        def forward(self, batch: Tensor) -> Tensor:
            return self.head(self.body[1].forward(self.body[0](batch)))

    direct = Direct()
    with watching(trains(direct), layers=6):
        step(direct)


@pytest.mark.parametrize(
    ("run", "cause", "text"),
    [
        (lambda net: step(net, net.body.parameters()), "not-in-optimizer", "SGD did"),
        (lambda net: step(net, lr=0.0), "learning-rate-0", "a learning rate of 0 in SGD"),
        (lambda net: step(net, scale=0.0), "zero-gradient", "a gradient of zeros when SGD"),
        (lambda net: step(net, lr=1e-20), "rounded-away", "learning rate of 1e-20"),
        (lambda net: SGD(net.parameters(), 0.1).step(), "no-gradient", "no gradient when SGD"),
        (lambda net: net.head.requires_grad_(False), "requires-grad-off", "requires_grad=False"),
    ],
    ids=lambda value: value if isinstance(value, str) and "-" in value else "",
)
def test_each_reason_is_told(net: Net, run: Callable[[Net], object], cause: str, text: str) -> None:
    verdict = broken(trains(net, "head"), lambda: run(net))
    assert causes(verdict) == {cause: ("head.weight", "head.bias")}
    assert text in verdict.causes[0].why
    assert [change.name for change in verdict.changes] == ["head.weight", "head.bias"]


def test_reasons_are_told_apart_by_parameter(net: Net) -> None:
    net.unused = nn.Linear(2, 2)
    net.body.requires_grad_(False)
    groups = [{"params": [net.head.weight], "lr": 0.0}, {"params": net.unused.parameters()}]
    verdict = broken(trains(net, "*"), lambda: step(net, groups))
    assert causes(verdict) == {
        "requires-grad-off": ("body.0.weight", "body.1.weight", "body.1.bias"),
        "not-in-optimizer": ("head.bias",),
        "no-gradient": ("unused.weight", "unused.bias"),
        "learning-rate-0": ("head.weight",),
    }


def test_a_bias_before_a_batch_norm_is_told_for_what_it_is() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        net[0].bias.fill_(1e4)
    optimizer = SGD(net.parameters(), lr=0.001)  # far too little for what rounding leaves in a sum

    def train_step() -> None:
        (net(torch.randn(8, 3)) - torch.randn(8, 4)).square().mean().backward()
        optimizer.step()

    with (
        pytest.warns(InvariantHazard, match=r"0\.bias: did not move: .* bias before a BatchNorm"),
        watching(trains(net), layers=5),
    ):
        train_step()
    verdict = broken(trains(net, "0.bias"), train_step)
    assert causes(verdict) == {"rounded-away": ("0.bias",)}


def test_what_moves_by_weight_decay_alone_does_not_train(net: Net) -> None:
    def step_without_a_gradient() -> None:
        optimizer = AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
        (0 * net(torch.randn(8, 3)).sum()).backward()
        optimizer.step()

    verdict = broken(trains(net, "head"), step_without_a_gradient)
    assert causes(verdict) == {"zero-gradient": ("head.weight", "head.bias")}
    assert verdict.changes[0].text.startswith("moved by decay or moments alone; AdamW")


def test_a_closure_brings_the_gradients_that_count(net: Net) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def closure(*, detached: bool = False) -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = net(torch.randn(8, 3)).square().mean()
        (loss.detach().requires_grad_() if detached else loss).backward()
        return loss.detach()

    net.train()
    closure()
    optimizer.zero_grad(set_to_none=False)
    with watching(trains(net, "head"), layers=2):
        optimizer.step(closure)
    with pytest.raises(InvariantBroken, match="zero-gradient"), trains(net, "head"):
        optimizer.step(lambda: closure(detached=True))


def test_a_step_that_is_undone_is_told(net: Net) -> None:
    def step_and_put_back() -> None:
        before = copy.deepcopy(net.head.state_dict())
        step(net)
        net.head.load_state_dict(before)

    verdict = broken(trains(net), step_and_put_back)
    assert causes(verdict) == {"undone": ("head.weight", "head.bias")}


def test_a_step_that_a_half_dtype_rounds_away_is_told() -> None:
    model = nn.Linear(3, 3).bfloat16()

    def run() -> None:
        optimizer = SGD(model.parameters(), lr=1e-6)
        model(torch.ones(2, 3).bfloat16()).sum().backward()
        optimizer.step()

    (cause,) = broken(trains(model), run).causes
    assert cause.name == "rounded-away"
    assert "in bfloat16 such a step is too small to change" in cause.why


def test_a_tensor_that_is_tied_to_a_frozen_one_is_told() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embedding(tokens))

    model = Tied()
    model.embedding.requires_grad_(False)
    verdict = broken(trains(model, "head"), lambda: model(torch.tensor([1])))
    assert causes(verdict) == {"tied": ("head.weight",)}
    assert "is the same tensor as embedding.weight, so" in verdict.causes[0].why


def test_a_layer_that_is_stuck_in_eval_is_told_and_may_be_left_out(net: Net) -> None:
    def in_eval() -> None:
        net.eval()
        step(net)

    verdict = broken(trains(net, "body"), in_eval)
    assert causes(verdict) == {"stuck-in-eval": ("body.1",)}
    assert verdict.causes[0].place is not None
    with watching(trains(net, "body", buffers=False), layers=3):
        in_eval()


def test_by_default_what_asks_for_a_gradient_is_to_train(net: Net) -> None:
    net.body.requires_grad_(False).eval()
    with trains(net) as guard:
        step(net)
    assert guard.verdict is not None
    assert guard.verdict.layers == 2
    with pytest.raises(GateError, match="no parameter has requires_grad=True"):
        trains(net.requires_grad_(False)).start()


def test_a_skipped_step_under_grad_scaler_is_told(net: Net) -> None:
    scaler, optimizer = torch.amp.GradScaler("cpu"), SGD(net.parameters(), lr=0.1)

    def overflow() -> None:
        scaler.scale(net(torch.randn(8, 3)).sum() * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()

    (cause,) = broken(trains(net, "head"), overflow).causes
    assert cause.name == "not-in-optimizer"
    assert "check whether the step was skipped" in cause.fix


def test_an_optimizer_of_an_earlier_copy_trains_nothing(net: Net) -> None:
    optimizer = AdamW(net.parameters())
    verdict = broken(trains(net, "body", "head"), lambda: _no_new_values(net, optimizer))
    assert set(causes(verdict)) == {"no-gradient"}


def _no_new_values(net: Net, optimizer: torch.optim.Optimizer) -> None:
    copied = Net()
    copied(torch.randn(8, 3)).sum().backward()
    net.body(torch.randn(8, 3))
    optimizer.step()


def test_parameters_may_be_stepped_by_hand(net: Net) -> None:
    def by_hand() -> None:
        net(torch.randn(8, 3)).square().mean().backward()
        for parameter in net.parameters():
            parameter.data -= 0.1 * parameter.grad

    with watching(trains(net), layers=6):
        by_hand()


def test_a_finetuned_resnet_is_frozen_and_trains_in_one_guard() -> None:
    model = resnet18(num_classes=2).eval().requires_grad_(False)
    model.fc.requires_grad_(True)
    images = torch.randn(2, 3, 64, 64)

    def finetune() -> None:
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(images).square().mean().backward()
        optimizer.step()

    with watching(frozen(model, exclude="fc", trains="fc"), layers=40, tensors=120):
        finetune()
    guard = frozen_bn(model, trains=["fc", "layer4.1.conv2"])
    verdict = broken(guard, finetune)
    assert guard.spelling == "frozen_bn(trains=['fc', 'layer4.1.conv2'])"
    assert causes(verdict) == {"requires-grad-off": ("layer4.1.conv2.weight",)}


def test_both_verdicts_of_one_guard_are_told(net: Net) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen(net, "body", trains="head"):
        net(torch.randn(8, 3))
    assert [verdict.guard for verdict in caught.value.verdicts] == [
        "frozen('body', trains='head')",
        "trains('head')",
    ]


def test_a_guard_with_a_companion_is_one_where_it_is_forgotten(
    net: Net, unreported: dict[int, str]
) -> None:
    guard = frozen(net, "body", trains="head")
    assert len(unreported) == 1
    with pytest.warns(GuardNeverEntered) as warned:
        del guard
    assert len(warned) == 1
    unreported.clear()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda net: trains(net, "haed"), "'haed' matches nothing in the model; did you mean"),
        (lambda net: trains(net, buffers=1), r"buffers= takes True or False; got 1 \(int\)"),
        (lambda net: frozen(net, trains=3), r"trains= takes a name or several names; got 3"),
        (lambda net: frozen(net, trains=[]), r"what must train, and \[\] \(list\) names nothing"),
        (lambda net: frozen_bn(net, trains=()), r"what must train, and \(\) \(tuple\) names noth"),
        (lambda net: trains(net, "head", exclude="head"), "leaves nothing to watch"),
        (lambda net: trains(nn.BatchNorm1d(2, affine=False)), "no parameter|no parameters"),
    ],
)
def test_a_bad_argument_is_named(net: Net, make: Callable[[Net], Guard], text: str) -> None:
    with pytest.raises(GateError, match=text):
        make(net).start()


def test_a_guarded_step_is_bit_for_bit_a_bare_one(net: Net) -> None:
    bare = Net()
    bare.load_state_dict(net.state_dict())
    torch.manual_seed(3)
    step(bare)
    torch.manual_seed(3)
    with watching(trains(net), layers=6):
        step(net)
    for name, value in bare.state_dict().items():
        assert value.equal(net.state_dict()[name]), name


class Decaying(SGD):
    """Shrink every parameter, with a gradient or without."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.99)
        return super().step(closure)


def test_what_an_optimizer_decays_without_a_gradient_does_not_train(net: Net) -> None:
    net.body.register_forward_hook(lambda *of: of[-1].detach())
    optimizer = Decaying(net.parameters(), 0.1)

    def train() -> None:
        net(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()

    verdict = broken(trains(net, "body.0"), train)
    assert causes(verdict) == {"no-gradient": ("body.0.weight",)}
    assert verdict.changes[0].text.startswith("moved by decay or moments alone")


def test_what_an_optimizer_moves_by_steps_of_its_own_trains(net: Net) -> None:
    class Perturbing(SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(torch.randn_like(parameter))

    optimizer = Perturbing(net.parameters(), 0.1)
    with watching(trains(net), layers=6):
        net(torch.randn(8, 3))
        optimizer.step()


def test_an_optimizer_that_sets_its_own_learning_rate(net: Net) -> None:
    optimizer = Adafactor(net.parameters(), lr=None)
    with watching(trains(net), layers=6):
        net(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()


def test_a_call_without_a_model_is_an_error_of_the_gate() -> None:
    with pytest.raises(GateError, match=r"^trains\(\): missing a required"):
        trains()  # type: ignore[call-arg]
