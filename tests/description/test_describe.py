"""A description says what each layer would do in the next step, and the next step does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from pytest_bninvariants import GateError, describe
from pytest_bninvariants.description.describe import LayerDescription


def only(layer: nn.Module, optimizer: object = None) -> LayerDescription:
    (row,) = describe(layer, optimizer).layers
    return row


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


def with_old_gradient(layer: nn.BatchNorm1d) -> nn.Module:
    layer(torch.randn(4, 3)).square().sum().backward()
    return layer.eval().requires_grad_(False)


def untracked(layer: nn.BatchNorm1d) -> nn.Module:
    layer.track_running_stats = False
    return layer


def own_forward(layer: nn.BatchNorm1d) -> nn.Module:
    layer.forward = lambda x: x
    return layer


CASES: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.BatchNorm1d(3), "trains, and updates its statistics"),
    (lambda: nn.BatchNorm1d(3).eval(), "trains, and keeps its statistics"),
    (lambda: frozen(nn.BatchNorm1d(3)), "updates its statistics, though frozen"),
    (lambda: frozen(nn.BatchNorm1d(3)).eval(), "stays as it is"),
    (
        lambda: nn.BatchNorm1d(3, track_running_stats=False),
        "trains, and normalises with batch statistics, and keeps none",
    ),
    (
        lambda: frozen(nn.BatchNorm1d(3, momentum=0.0)),
        "normalises with batch statistics, and keeps its own, since its momentum is 0",
    ),
    (lambda: frozen(nn.BatchNorm1d(3, momentum=None)), "updates its statistics, though frozen"),
    (
        lambda: untracked(nn.BatchNorm1d(3)),
        "trains, and normalises with batch statistics, and keeps its own",
    ),
    (lambda: nn.BatchNorm1d(3, affine=False), "updates its statistics"),
    (lambda: nn.BatchNorm1d(3, affine=False).eval(), "stays as it is"),
    (
        lambda: with_old_gradient(nn.BatchNorm1d(3)),
        "moves its frozen weight and bias by the gradient left from before, "
        "and keeps its statistics",
    ),
]


@pytest.mark.parametrize(("make", "says"), CASES, ids=[says for _, says in CASES])
def test_a_layer_does_in_the_next_step_what_its_description_says(
    make: Callable[[], nn.Module], says: str
) -> None:
    layer = make()
    optimizer = SGD([nn.Parameter(torch.zeros(1)), *layer.parameters()], lr=0.1)
    assert only(layer, optimizer).next_step == says
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    output = layer(torch.randn(4, 3) + 1)
    if output.requires_grad:
        output.square().sum().backward()
    optimizer.step()
    moved = {name for name, value in layer.state_dict().items() if not value.equal(before[name])}
    assert ("running_mean" in moved) == ("updates its statistics" in says)
    assert ("weight" in moved) == ("trains" in says or "moves its frozen" in says)


def test_a_description_changes_nothing_and_runs_nothing() -> None:
    layer = nn.BatchNorm1d(3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.register_forward_hook(lambda *_: pytest.fail("it ran"))
    describe(layer)
    assert layer.training
    assert all(value.equal(before[name]) for name, value in layer.state_dict().items())


def test_a_parameter_in_no_optimizer_is_named() -> None:
    layer = nn.BatchNorm1d(3)
    row = only(layer, SGD([layer.weight], lr=0.1))
    assert row.next_step == "lacks an optimizer for its bias, and updates its statistics"
    assert row.optimizer == "SGD"
    assert only(layer, SGD([nn.Parameter(torch.zeros(1))], lr=0.1)).optimizer == "none"


def test_without_an_optimizer_none_is_missed() -> None:
    row = only(nn.BatchNorm1d(3))
    assert (row.optimizer, row.next_step) == (
        "-",
        "asks for gradients, and updates its statistics",
    )


def test_a_learning_rate_of_0_trains_nothing() -> None:
    layer = nn.BatchNorm1d(3).eval()
    groups = [{"params": [layer.weight], "lr": 0.0}, {"params": [layer.bias], "lr": 0.0}]
    row = only(layer, SGD(groups, lr=0.1))
    assert row.optimizer == "SGD[0], SGD[1]"
    assert row.next_step == (
        "does not train, since its learning rate is 0, and keeps its statistics"
    )


def test_one_group_with_a_learning_rate_is_enough_to_train_or_to_move_what_is_frozen() -> None:
    layer = nn.BatchNorm1d(3).eval()
    groups = [{"params": [layer.weight], "lr": 0.0}, {"params": [layer.bias], "lr": 0.1}]
    assert only(layer, SGD(groups, lr=0.1)).next_step == "trains, and keeps its statistics"
    old = with_old_gradient(nn.BatchNorm1d(3))
    groups = [{"params": [old.weight], "lr": 0.0}, {"params": [old.bias], "lr": 0.1}]
    assert only(old, SGD(groups, lr=0.1)).next_step == (
        "moves its frozen bias by the gradient left from before, and keeps its statistics"
    )
    assert only(old, SGD(groups[:1], lr=0.1)).next_step == "stays as it is"


def test_an_optimizer_that_has_no_learning_rate_trains() -> None:
    class Own(Optimizer):
        """It chooses its rate by itself."""

        def __init__(self, parameters: Iterable[Tensor]) -> None:
            super().__init__(parameters, {})

    layer = nn.BatchNorm1d(3).eval()
    assert only(layer, Own(layer.parameters())).next_step == "trains, and keeps its statistics"


@pytest.mark.parametrize(
    ("trainable", "answer"),
    [((), "no"), (("weight",), "partly"), (("bias",), "partly"), (("weight", "bias"), "yes")],
)
def test_whether_a_layer_requires_gradients_is_told_of_all_its_parameters(
    trainable: tuple[str, ...], answer: str
) -> None:
    layer = nn.BatchNorm1d(3)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name in trainable)
    assert only(layer).requires_grad == answer
    assert only(nn.BatchNorm1d(3, affine=False)).requires_grad == "-"


@pytest.mark.parametrize(("momentum", "shown"), [(None, "average"), (0.0, "0"), (0.25, "0.25")])
def test_momentum_is_shown_as_a_number_or_as_an_average(momentum: float | None, shown: str) -> None:
    assert only(nn.BatchNorm1d(3, momentum=momentum)).momentum == shown


@pytest.mark.parametrize("wrap", [list, tuple, lambda each: dict(enumerate(each))])
def test_several_optimizers_are_given_in_a_list_or_a_dict(wrap: Callable[..., object]) -> None:
    layer = nn.BatchNorm1d(3)
    optimizers = wrap([SGD([layer.weight], lr=0.1), Adam([layer.bias])])
    assert only(layer, optimizers).optimizer == "SGD, Adam"


def test_a_name_in_the_place_of_an_optimizer_is_shown_whole() -> None:
    with pytest.raises(GateError, match=r"got 'adam' \(str\)"):
        describe(nn.BatchNorm1d(2), "adam")


@pytest.mark.parametrize("wrong", [3, "adam", [3], torch.zeros(2)])
def test_what_is_no_optimizer_is_refused_by_its_value(wrong: object) -> None:
    with pytest.raises(GateError, match=r"optimizer= takes a torch\.optim\.Optimizer.*got "):
        describe(nn.BatchNorm1d(3), wrong)


def test_what_is_no_model_is_refused_by_its_value() -> None:
    with pytest.raises(GateError, match=r"takes a torch\.nn\.Module; got 3 \(int\)"):
        describe(3)  # type: ignore[arg-type]


def filled(mean: float, var: float) -> nn.Module:
    layer = nn.BatchNorm1d(2)
    layer.running_mean.fill_(mean)
    layer.running_var.fill_(var)
    return layer


@pytest.mark.parametrize(
    ("layer", "state"),
    [
        (nn.BatchNorm1d(2), "new"),
        (filled(0, 2), "warm"),
        (filled(1, 1), "warm"),
        (filled(float("nan"), 1), "not finite"),
        (filled(0, float("inf")), "not finite"),
        (filled(0, -1), "negative variance"),
        (nn.LazyBatchNorm1d(), "not yet made"),
        (nn.BatchNorm1d(2, device="meta"), "unreadable"),
        (nn.BatchNorm1d(2, track_running_stats=False), "none"),
        (torchvision.ops.FrozenBatchNorm2d(2), "new"),
    ],
)
def test_statistics_are_told_by_their_values(layer: nn.Module, state: str) -> None:
    assert only(layer).statistics == state


def test_a_forward_of_its_own_is_not_guessed() -> None:
    row = only(own_forward(nn.BatchNorm1d(3)))
    assert row.next_step.endswith("may update its statistics by its own forward")


def test_rows_are_in_the_models_order_and_a_shared_layer_has_one() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared, nn.BatchNorm1d(3))
    assert [row.name for row in describe(model).layers] == ["1", "4"]
    everything = describe(model, all_layers=True)
    assert [row.name for row in everything.layers] == ["0", "1", "2", "4"]
    assert str(everything).startswith("Sequential: 4 layers\n")
    assert everything.layers[0].statistics == everything.layers[0].momentum == "-"


def test_wrappers_leave_names_as_they_are() -> None:
    compiled = torch.compile(nn.Sequential(nn.BatchNorm1d(3)))
    assert [row.name for row in describe(compiled).layers] == ["0"]


def test_layers_of_one_fate_stand_together() -> None:
    model = torchvision.models.resnet18()
    frozen(model.layer1).eval()
    text = str(describe(model))
    assert text.splitlines()[0] == "ResNet: 20 BN layers"
    assert "16 layers: asks for gradients, and updates its statistics" in text
    assert "4 layers: stays as it is" in text


def test_a_notebook_shows_a_table_that_names_cannot_break() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<b>&\x1b[0m", nn.BatchNorm1d(3))

    page = describe(Odd())._repr_html_()
    assert "&lt;b&gt;&amp;\\x1b[0m" in page
    assert "\x1b" not in page + str(describe(Odd()))


def test_a_model_without_bn_layers_has_an_empty_table() -> None:
    description = describe(nn.Linear(2, 2))
    assert description.layers == ()
    assert str(description) == "Linear: 0 BN layers"


def test_a_tensor_learning_rate_is_read() -> None:
    layer = nn.BatchNorm1d(3).eval()
    rate: Tensor = torch.tensor(0.1)
    optimizer = SGD(layer.parameters(), lr=rate, foreach=False)
    assert only(layer, optimizer).next_step == "trains, and keeps its statistics"
