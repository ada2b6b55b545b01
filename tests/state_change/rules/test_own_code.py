"""What a layer's own code did is told: a reset, a forward that writes, shared memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen, frozen_bn

BATCH = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def verdict_of(model: nn.Module, step: Callable[[], object], guard: Any = frozen) -> Verdict:
    with pytest.raises(FrozenStateChanged) as caught, guard(model):
        step()
    return caught.value.verdict


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net(torch.randn(16, 3))
    return net.eval().requires_grad_(False)


def bind_new(bn: nn.BatchNorm1d) -> None:
    bn.running_mean, bn.running_var = torch.zeros(4), torch.ones(4)
    bn.num_batches_tracked = torch.tensor(0)


def fill(bn: nn.BatchNorm1d) -> None:
    assert bn.running_mean is not None
    assert bn.running_var is not None
    nn.init.zeros_(bn.running_mean)
    nn.init.ones_(bn.running_var)


@pytest.mark.parametrize("reset", [bind_new, fill, nn.BatchNorm1d.reset_running_stats])
def test_statistics_of_a_new_layer_are_a_reset(net: Any, reset: Callable[[Any], None]) -> None:
    def step() -> None:
        reset(net[1])
        net(BATCH)

    (cause,) = verdict_of(net, step, frozen_bn).causes
    assert (cause.name, cause.layers) == ("reset", ("1",))
    assert "1 has the statistics of a new layer now" in cause.why
    assert "averaging callbacks" in cause.fix
    assert "optimizer" not in cause.fix


def test_an_affine_reset_is_part_of_it(net: Any) -> None:
    net[1].weight.fill_(2)
    (cause,) = verdict_of(net, lambda: net[1].reset_parameters()).causes
    assert cause.name == "reset"
    assert "1.weight is that of a new layer, too" in cause.why


def test_statistics_that_a_load_brought_are_loaded(net: Any) -> None:
    new = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
    assert [each.name for each in verdict_of(net, lambda: net.load_state_dict(new)).causes] == [
        "loaded"
    ]


def test_a_new_layer_in_the_place_of_an_old_one_is_replaced(net: Any) -> None:
    (cause,) = verdict_of(net, lambda: setattr(net, "1", nn.BatchNorm1d(4)), frozen_bn).causes
    assert cause.name == "replaced"


def test_a_mean_of_zeros_beside_a_kept_variance_is_no_reset(net: Any) -> None:
    (cause,) = verdict_of(net, lambda: net[1].running_mean.zero_(), frozen_bn).causes
    assert cause.name == "in-place"


class Codebook(nn.Module):
    """Codes that move towards the batch in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(3), requires_grad=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.move(x)
        return x - self.codes

    def move(self, x: Tensor) -> None:
        self.codes.lerp_(x.mean(0), 0.1)


class Rebinding(Codebook):
    def move(self, x: Tensor) -> None:
        self.codes = nn.Parameter(x.mean(0), requires_grad=False)


class FirstBatch(nn.Module):
    """A shift that the first batch decides, in eval, too."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.shift.data = -x.mean(0)
        return x + self.shift


@pytest.mark.parametrize(
    ("layer", "cause_name"), [(Codebook(), "in-place"), (Rebinding(), "replaced")]
)
def test_a_forward_in_training_mode_may_have_written_its_layer(
    layer: nn.Module, cause_name: str
) -> None:
    net = nn.Sequential(layer)
    (cause,) = verdict_of(net, lambda: net(BATCH)).causes
    assert cause.name == cause_name
    assert "the forward of 0 ran in training mode, and may have" in cause.why
    assert cause.fix.startswith("call .eval() on 0")
    assert "--bn-trace" in cause.fix
    net.eval()
    with frozen(net):
        net(BATCH)


def test_a_forward_that_does_not_ask_for_its_mode_is_not_sent_to_eval() -> None:
    net = nn.Sequential(FirstBatch())
    (cause,) = verdict_of(net, lambda: net(BATCH)).causes
    assert "the forward of 0 ran" in cause.why
    assert ".eval()" not in cause.fix


def test_a_layer_that_was_in_eval_is_not_sent_there() -> None:
    net = nn.Sequential(Codebook()).eval()

    def step() -> None:
        net(BATCH)
        net[0].codes.add_(1)

    (cause,) = verdict_of(net, step).causes
    assert "training mode" not in cause.why
    assert ".eval()" not in cause.fix


def test_eval_is_advised_only_if_it_stops_all_that_wrote() -> None:
    net = nn.Sequential(Codebook(), FirstBatch())
    (cause,) = verdict_of(net, lambda: net(BATCH)).causes
    assert cause.layers == ("0", "1")
    assert "the forward of 0 and 1 ran, and may have done so" in cause.why
    assert ".eval()" not in cause.fix


class Growing(torch.optim.Optimizer):
    """Grow what it holds, without a gradient, in a way that its state does not explain."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1)


def test_a_forward_is_not_blamed_for_what_an_optimizer_was_seen_to_move() -> None:
    net = nn.Sequential(Codebook()).eval()
    optimizer = Growing(net.parameters())

    def step() -> None:
        net(BATCH)
        optimizer.step()

    (cause,) = verdict_of(net, step).causes
    assert "0.codes moved in a step of Growing (group 0) with no gradient" in cause.why
    assert "forward" not in cause.why


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_with_a_max_norm_writes_in_eval_too(kind: Any) -> None:
    net = nn.Sequential(kind(5, 3, max_norm=0.1)).eval().requires_grad_(False)
    (cause,) = verdict_of(net, lambda: net(torch.arange(4)[None])).causes
    assert "the forward of 0 ran" in cause.why
    assert cause.fix.startswith("set max_norm=None on 0")
    net[0].max_norm = None
    with frozen(net):
        net(torch.arange(4)[None])


def test_the_forward_of_a_linear_layer_is_no_suspect(net: Any) -> None:
    def step() -> None:
        net.train(False)(BATCH)
        net[0].weight.add_(1)

    (cause,) = verdict_of(net, step).causes
    assert "forward" not in cause.why


@pytest.mark.parametrize("name", ["running_mean", "num_batches_tracked"])
def test_a_single_statistic_that_is_shared_is_told(name: str) -> None:
    online = nn.BatchNorm1d(3)
    average = copy.deepcopy(online).eval()
    setattr(average, name, getattr(online, name))
    verdict = verdict_of(average, lambda: online(BATCH), frozen_bn)
    (cause,) = verdict.causes
    assert verdict.changed_tensors == (name,)
    assert cause.why == (
        f"{name} is the same memory as that of a BatchNorm1d outside the model, which normalised "
        "with batch statistics"
    )
    assert "copy.deepcopy(model)" in cause.fix


@pytest.mark.parametrize("ask", [(), ("0",)])
def test_a_statistic_that_two_layers_of_the_model_share_is_told(ask: tuple[str, ...]) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    net[0].running_mean = net[1].running_mean
    net[1].train()
    with pytest.raises(FrozenStateChanged) as caught, frozen_bn(net, *ask):
        net(BATCH)
    cause = caught.value.verdict.causes[-1]
    assert (cause.name, cause.tensors) == ("update-in-eval", ("0.running_mean",))
    assert cause.why == (
        "0.running_mean is the same memory as that of 1, which normalised with batch statistics"
    )
    assert cause.fix == "give 0 its own running_mean: a clone() of 1's"


def test_a_write_to_a_statistic_that_nothing_shares_is_not_put_down_to_sharing() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    net[1].train()

    def step() -> None:
        net(BATCH)
        net[0].running_mean.add_(1)

    assert {c.name: c.layers for c in verdict_of(net, step, frozen_bn).causes} == {
        "training-mode": ("1",),
        "in-place": ("0",),
    }


class FixedStatistics(nn.Module):
    """As torchvision's FrozenBatchNorm2d: it normalises with what it holds, in each mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(3))
        self.register_buffer("bias", torch.zeros(3))
        self.register_buffer("running_mean", torch.full((3,), 0.5))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale + self.bias - self.running_mean * scale


class UpdatedStatistics(FixedStatistics):
    """Updates what it holds, and normalises with that."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.lerp_(x.mean(0), 0.1)
        return super().forward(x)


@pytest.mark.parametrize(
    ("layer", "named"), [(FixedStatistics, "in-place"), (UpdatedStatistics, "training-mode")]
)
def test_a_layer_with_fixed_statistics_is_not_blamed_for_a_fill_in_training_mode(
    layer: type[nn.Module], named: str
) -> None:
    net = nn.Sequential(layer()).train()

    def step() -> None:
        net(BATCH)
        net[0].running_mean.fill_(2.0)

    (cause,) = verdict_of(net, step, frozen_bn).causes
    assert (cause.name, cause.tensors) == (named, ("0.running_mean",))


class Counter(nn.Module):
    """Not a BN layer, with a BN layer's counter."""

    def __init__(self, counter: Tensor) -> None:
        super().__init__()
        self.register_buffer("counter", counter)

    def forward(self, x: Tensor) -> Tensor:
        self.counter += 1
        return x


def test_a_statistic_that_another_module_holds_is_told_without_talk_of_export() -> None:
    bn = nn.BatchNorm1d(3).eval()
    assert bn.num_batches_tracked is not None
    other = Counter(bn.num_batches_tracked)
    (cause,) = verdict_of(bn, lambda: other(bn(BATCH)), frozen_bn).causes
    assert cause.why == (
        "num_batches_tracked is the same memory as that of a Counter outside the model, which ran"
    )
    assert "export" not in cause.fix
