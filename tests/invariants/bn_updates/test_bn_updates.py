"""`bn_updates`: how often running statistics are updated, and whether rightly."""

from __future__ import annotations

import copy
import gc
import tracemalloc
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from pytest_bninvariants import GateError, InvariantBroken, InvariantHazard, Verdict, bn_updates
from pytest_bninvariants.batchnorm.cases import Case
from pytest_bninvariants.batchnorm.strategies import bn_cases
from pytest_bninvariants.invariants.bn_updates import state_history

LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}

UNCHECKED = "the values of the model were not checked against the reference"


def values(seed: int = 0, shape: tuple[int, ...] = (8, 3)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def broken(model: nn.Module, step: Callable[[], object], *modules: str, **options: Any) -> Verdict:
    with pytest.raises(InvariantBroken) as caught, bn_updates(model, *modules, **options):
        step()
    return caught.value.verdict


def told(verdict: Verdict) -> list[tuple[str, str]]:
    return [(change.name, change.text) for change in verdict.changes]


def causes(verdict: Verdict) -> list[str]:
    return [cause.name for cause in verdict.causes]


def train(model: nn.Module, *batches: Tensor, step: bool = True) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches:
        model(batch).square().mean().backward()
    if step:
        optimizer.step()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.bn(self.linear(batch)))


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
    assert "times=4, and use momentum 1 - (1 - 0.1)^(1/4) = 0.026" in cause.fix
    assert cause.place is not None
    assert cause.place.function == "train"
    with bn_updates(model, times=4):
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
    assert "times=2, and use momentum 1 - (1 - 0.1)^(1/2) = 0.0513" in cause.fix
    with bn_updates(model, per="optimizer_step", times=2):
        accumulate(model, 2, 2)


def test_where_steps_or_layers_differ_no_number_is_advised() -> None:
    model = Net()
    (cause,) = broken(model, lambda: accumulate(model, 2, 3), per="optimizer_step").causes
    assert 'say times="forwards", without per=: no number fits' in cause.fix
    with bn_updates(model, times="forwards"):
        accumulate(model, 2, 3)
    twice, often = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def run() -> None:
        for _ in range(2):
            twice(torch.randn(8, 3))
            nn.Sequential(often, often)(torch.randn(8, 3))

    causes = broken(nn.ModuleList([twice, often]), run).causes
    assert all('say times="forwards"' in cause.fix for cause in causes)


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
    with bn_updates(layer, times="forwards"):
        for _ in range(4):
            torch.optim.SGD(layer.parameters(), lr=0.0).step()
            layer(x)
    one(x)
    assert layer.running_var.allclose(one.running_var)


def test_each_step_of_an_optimizer_can_be_counted() -> None:
    model = Net()

    def epoch() -> None:
        for seed in range(3):
            train(model, values(seed))

    with bn_updates(model, per="optimizer_step"):
        epoch()
    assert told(broken(model, epoch)) == [("bn", "3 updates, expected 1")]
    of_steps = bn_updates(model, per="optimizer_step")
    with pytest.raises(GateError, match="no optimizer that holds the model's param"), of_steps:
        train(model, values(), step=False)


class Renamed(torch.optim.SGD):
    """An optimizer whose step is its parent's, which torch hooks too once a plain SGD was made."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Sam(Optimizer):
    """Sharpness-aware minimisation, around another optimizer."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"rho": 0.05})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        kept = [p.clone() for p in held]
        for p in held:
            p.add_(p.grad, alpha=0.05)
        if closure is not None:
            with torch.enable_grad():
                closure()
        for p, value in zip(held, kept, strict=True):
            p.copy_(value)
        self.base.step()


@pytest.mark.parametrize("kind", [Renamed, Sam])
def test_a_step_of_an_optimizer_inside_anothers_is_part_of_it(
    kind: Callable[[Iterable[nn.Parameter]], Optimizer],
) -> None:
    model = Net()
    torch.optim.SGD(model.parameters())
    optimizer = kind(model.parameters())
    with bn_updates(model, per="optimizer_step"):
        for seed in range(3):
            model(values(seed)).square().mean().backward()
            optimizer.step()


def test_a_second_forward_inside_of_an_optimizers_step_has_the_batch_of_the_first() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = Sam(model.parameters())

    def closure() -> Tensor:
        loss = model(values()).square().mean()
        loss.backward()
        return loss

    verdict = broken(model, lambda: (closure(), optimizer.step(closure)), times=2)
    assert told(verdict) == [("0", "1 update with a batch that had updated already")]


def test_each_of_several_optimizers_steps_counts_and_one_that_raises_does_not() -> None:
    model = Net()
    optimizers = [torch.optim.SGD([each], lr=0.1) for each in model.parameters()]
    lbfgs = torch.optim.LBFGS(model.parameters())

    def fails() -> float:
        raise ValueError

    with bn_updates(model, per="optimizer_step"):
        for optimizer in optimizers:
            with suppress(ValueError):
                lbfgs.step(fails)
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()


def test_once_a_forward_holds_for_any_number_and_not_for_one_without_an_update() -> None:
    model = Net()
    with bn_updates(model, times="forwards"):
        train(model, *map(values, range(5)))

    def one_without() -> None:
        train(model, values(0))
        model.bn.track_running_stats = False
        train(model, values(1))

    verdict = broken(model, one_without, times="forwards")
    assert told(verdict) == [("bn", "1 update, 1 forward without, one a forward")]
    assert causes(verdict) == ["tracking-off"]


@given(bn_cases(modes=(True, True), tracking=True))
@settings(max_examples=150, deadline=None)
def test_torchs_layers_are_updated_rightly_whatever_the_batch(case: Case) -> None:
    assume(case.momentum != 0 and case.batches[0] != case.batches[1])
    layer, step = made(case)
    with bn_updates(layer, times=len(case.batches)):
        step()


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes_are_judged_by_their_own_bounds(dtype: str) -> None:
    @given(bn_cases(dtype=dtype, modes=(True,), tracking=True))
    @settings(max_examples=40, deadline=None, database=None)
    def run(case: Case) -> None:
        assume(case.momentum != 0)
        layer, step = made(case)
        before = copy.deepcopy(layer.state_dict())
        step()
        assume(layer.running_var.isfinite().all())  # float16 ends at 65504
        layer.load_state_dict(before)
        with bn_updates(layer):
            step()

    run()


def made(case: Case) -> tuple[nn.Module, Callable[[], None]]:
    """Return torch's layer in a case's state, and what runs its batches."""
    batches = [batch.tensor() for batch in case.batches]
    assume(all(batch.numel() > batch.shape[1] for batch in batches))
    layer = LAYERS[batches[0].dim()](
        case.channels, eps=case.eps, momentum=case.momentum, affine=case.affine
    )
    layer.to(getattr(torch, case.state_dtype)).load_state_dict(case.state(), strict=False)

    def step() -> None:
        for batch in batches:
            layer(batch)

    return layer, step


class Own(nn.BatchNorm1d):
    """A layer with one mistake, or none."""

    def __init__(self, mistake: str = "", momentum: float | None = 0.3) -> None:
        super().__init__(3, momentum=momentum)
        self.mistake = mistake

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var)
        with torch.no_grad():
            self.update(x)
        return F.batch_norm(x, None, None, training=True)

    def update(self, x: Tensor) -> None:
        mistake, m = self.mistake, 0.3
        mean, var = x.mean(0), x.var(0, unbiased=mistake != "biased")
        if mistake == "inverted":
            m = 1 - m
        if mistake == "deviation":
            var = var.sqrt()
        self.running_mean.lerp_(mean, 0.0 if mistake == "mean stays" else m)
        self.running_var.lerp_(var, m)
        self.num_batches_tracked += {"counts twice": 2, "does not count": 0}.get(mistake, 1)


def test_a_layer_of_ones_own_that_updates_rightly_holds() -> None:
    model = Own()
    with bn_updates(model):
        model(values())


@pytest.mark.parametrize(
    ("mistake", "tensors", "why"),
    [
        ("biased", {"running_var"}, "with the biased variance"),
        ("inverted", {"running_mean", "running_var"}, "as if momentum were 0.7"),
        ("deviation", {"running_var"}, "with the standard deviation"),
        ("mean stays", {"running_mean"}, "as if nothing had been taken in"),
    ],
)
def test_a_wrong_update_is_told_with_the_mistake_that_fits(
    mistake: str, tensors: set[str], why: str
) -> None:
    model = Own(mistake)
    verdict = broken(model, lambda: model(values()))
    assert {change.name for change in verdict.changes} == tensors
    assert causes(verdict) == ["wrong-update"]
    assert why in verdict.causes[0].why


def freed(x: Tensor) -> None:
    x.untyped_storage().resize_(0)


@pytest.mark.parametrize("write", [freed, Tensor.zero_, Tensor.relu_])
def test_a_batch_that_was_written_or_freed_after_it_was_normalised_is_not_held_against(
    write: Callable[[Tensor], object],
) -> None:
    def hook(module: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
        write(args[0])

    model = nn.BatchNorm1d(3)
    model.register_forward_hook(hook)
    with bn_updates(model) as guard, torch.no_grad():
        model(values(shape=(100_000, 3)))
    assert guard.verdict is not None
    assert guard.verdict.notes == (UNCHECKED,)


def test_a_batch_that_is_written_before_it_is_normalised_is_judged() -> None:
    class Rectified(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.relu_())

    model = Rectified(3)
    with bn_updates(model) as guard:
        model(values())
    assert guard.verdict is not None
    assert guard.verdict.notes == ()


def test_statistics_whose_memory_was_freed_are_not_read() -> None:
    model = nn.BatchNorm1d(100_000)

    def run() -> None:
        model(torch.randn(2, 100_000))
        freed(model.running_mean)

    assert causes(broken(model, run)) == ["in-place"]


class Fused(nn.Module):
    """A module that normalises with the statistics of a layer in it, which it does not call."""

    def __init__(self, how: str, momentum: float | None = 0.3) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum)
        self.how = how

    def forward(self, x: Tensor, momentum: float = 0.3) -> Tensor:
        x, bn = self.linear(x), self.bn
        if self.how == "forward":
            return bn.forward(x)
        if self.how == "counts before" and self.training:
            bn.num_batches_tracked += 1
        y = F.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, momentum
        )
        if self.how == "counts after" and self.training:
            bn.num_batches_tracked += 1
        return y


@pytest.mark.parametrize("how", ["forward", "counts before", "counts after"])
def test_a_layer_that_is_normalised_for_without_a_call_of_its_own_is_updated(how: str) -> None:
    model = Fused(how)
    with bn_updates(model, times=3) as guard:
        train(model, *map(values, range(3)))
    assert guard.verdict is not None
    assert (guard.verdict.hazards, guard.verdict.notes) == ((), ())
    verdict = broken(model, lambda: train(model, values(3), values(4)))
    assert told(verdict) == [("bn", "2 updates, expected 1")]
    assert verdict.causes[0].place is not None
    assert verdict.causes[0].place.function == "train"
    saved = copy.deepcopy(model.state_dict())

    def undo() -> None:
        with bn_updates(model):
            model(values(5))
            model.load_state_dict(saved)

    with pytest.warns(InvariantHazard, match="were put back"):
        undo()


def test_a_call_with_a_layers_statistics_is_judged_by_the_layers_momentum() -> None:
    model = Fused("counts before")
    verdict = broken(model, lambda: model(values(), momentum=0.7))
    assert causes(verdict) == ["wrong-update"]
    assert "as if momentum were 0.7" in verdict.causes[0].why
    model = Fused("forward", momentum=None)
    with bn_updates(model, times=2) as guard:
        model(values(0))
        model(values(1))
    assert guard.verdict is not None
    assert "bn were not checked against the reference" in guard.verdict.notes[0]


def test_a_call_that_leaves_the_counter_alone_is_a_hazard_and_one_in_eval_no_update() -> None:
    model = Fused("does not count")
    with (
        pytest.warns(InvariantHazard, match="bn: .* does not count its updates"),
        bn_updates(model),
    ):
        model(values())
    with bn_updates(model):
        model.bn(model.linear(values()))
        model(values(), momentum=0.0)
    assert causes(broken(model.eval(), lambda: model(values()))) == ["stuck-in-eval"]
    model.train().bn.eval()
    verdict = broken(model, lambda: model(values()))
    assert "1 update in eval" in told(verdict)[0][1]


class Plain(nn.Module):
    """A norm layer that is none of torch's, nor has a momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training)


class OfItsOwn(nn.Module):
    """A norm layer of plain operators, with a way of its own to update."""

    def __init__(self, way: str = "", momentum: float | None = 0.1) -> None:
        super().__init__()
        self.way = way
        if way != "without momentum":
            self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean(0), x.var(0)
        if self.training:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.update(x)
        return (x - mean) / (var + 1e-5).sqrt()

    def update(self, x: Tensor) -> None:
        ghosts = x.chunk(2) if self.way == "ghosts" else (x,)
        m = 0.9 if self.way == "swapped" else 0.1
        for each in ghosts:
            self.running_mean.lerp_(each.mean(0), m)
            self.running_var.lerp_(each.var(0, unbiased=self.way != "biased"), m)
        if self.way == "garbage":
            self.running_mean.fill_(99.0)


def test_a_layer_of_plain_operators_that_updates_as_batch_norm_does_is_silent() -> None:
    model = OfItsOwn()
    with bn_updates(model, times=2) as guard:
        model(values(0))
        model(values(1))
    assert guard.verdict is not None
    assert (guard.verdict.hazards, guard.verdict.notes) == ((), ())
    verdict = broken(model, lambda: (model(values(0)), model(values(0))), times=2)
    assert told(verdict) == [("", "1 update with a batch that had updated already")]


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("biased", "running_var is with the biased variance"),
        ("swapped", "running_mean is as if momentum were 0.9"),
        ("garbage", "running_mean: 3 of 3 values, 99 at"),
        ("ghosts", "differ from BatchNorm's, perhaps on purpose: running_mean: 3 of 3"),
        ("without momentum", "it has a custom forward: its updates could not be checked"),
    ],
)
def test_a_layer_of_plain_operators_that_updates_otherwise_is_a_hazard(way: str, text: str) -> None:
    model = OfItsOwn(way)
    with pytest.warns(InvariantHazard, match=text), bn_updates(model):
        model(values())


def test_a_layer_that_normalises_its_batch_in_parts_is_not_judged_by_one_of_them() -> None:
    class Ghosts(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super(Ghosts, self).forward(each) for each in x.chunk(3)])

    model = Ghosts(3)
    with bn_updates(model) as guard:
        model(values(shape=(9, 3)))
    assert guard.verdict is not None
    assert guard.verdict.notes == (UNCHECKED,)


def test_a_layer_without_a_momentum_is_not_taken_for_one_that_averages_all_batches() -> None:
    model = Plain()
    for seed in range(2):
        with pytest.warns(InvariantHazard, match="does not count"), bn_updates(model) as guard:
            model(values(seed))
        assert guard.verdict is not None
        assert "were not checked against the reference" in guard.verdict.notes[0]


def test_an_error_just_above_the_bound_is_found_and_one_below_is_not() -> None:
    def off_by(relative: float) -> Callable[[], None]:
        layer = nn.BatchNorm1d(3, momentum=1.0)

        class Off(nn.BatchNorm1d):
            def forward(self, x: Tensor) -> Tensor:
                y = super().forward(x)
                self.running_var.mul_(1 + relative)
                return y

        model = Off(3, momentum=1.0)
        model.load_state_dict(layer.state_dict())

        def run() -> None:
            with bn_updates(model):
                model(values())

        return run

    off_by(1e-7)()
    with pytest.raises(InvariantBroken, match="running_var"):
        off_by(1e-4)()


def test_a_counter_that_is_needed_or_counts_twice_is_a_violation_and_another_a_hazard() -> None:
    twice = Own("counts twice")
    assert causes(broken(twice, lambda: twice(values()))) == ["miscounted"]
    never = Own("does not count", momentum=None)
    never(values(1))
    assert "miscounted" in causes(broken(never, lambda: never(values())))
    never = Own("does not count")
    with pytest.warns(InvariantHazard, match="does not count its updates"), bn_updates(never):
        never(values())


def test_a_layer_that_writes_into_copies_is_told() -> None:
    class Lossy(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            copies = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(x, *copies, training=self.training)

    model = Lossy(3)
    verdict = broken(model, lambda: model(values()))
    assert told(verdict) == [("", "0 updates, 1 forward without, expected 1")]
    assert causes(verdict) == ["not-written"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_in_resnet18_is_told(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet18(num_classes=2)

        def forward(self, x: Tensor) -> Tensor:
            net = self.net
            x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
            for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
                x = checkpoint(layer, x, use_reentrant=reentrant)
            return net.fc(x.mean((2, 3)))

    model = Checkpointed()
    images = values(shape=(2, 3, 64, 64))
    verdict = broken(model, lambda: train(model, images))
    assert (verdict.layers, len(verdict.changes)) == (20, 19)
    assert told(verdict)[0][1] == "2 updates, expected 1; 1 update in backward"
    assert causes(verdict) == ["recomputation"]
    with bn_updates(model, "net.bn1"):
        train(model, images)
    assert "in backward" in told(broken(model, lambda: train(model, images), times=2))[1][1]


def sam(model: Net, second: Callable[[Net], None], after: Callable[[Net], None]) -> None:
    """Take a step of SAM: a second forward, at weights that are moved."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = values()
    model(batch).square().mean().backward()
    moved = {p: 0.05 * p.grad for p in model.parameters() if p.grad is not None}
    with torch.no_grad():
        for parameter, by in moved.items():
            parameter.add_(by)
    second(model)
    model(batch).square().mean().backward()
    after(model)
    with torch.no_grad():
        for parameter, by in moved.items():
            parameter.sub_(by)
    optimizer.step()


def test_sams_second_forward_is_told_and_each_way_to_mend_it_holds() -> None:
    def nothing(_: Net) -> None: ...

    def momentum(value: float) -> Callable[[Net], None]:
        return lambda model: setattr(model.bn, "momentum", value)

    def tracking(value: bool) -> Callable[[Net], None]:
        return lambda model: setattr(model.bn, "track_running_stats", value)

    model = Net()
    verdict = broken(model, lambda: sam(model, nothing, nothing))
    assert causes(verdict) == ["extra-forward"]
    for second, after in ((momentum(0.0), momentum(0.1)), (tracking(False), tracking(True))):
        with bn_updates(model):
            sam(model, second, after)
    kept: dict[str, Tensor] = {}

    def keep(model: Net) -> None:
        kept.update({name: value.clone() for name, value in model.bn.named_buffers()})

    def put_back(model: Net) -> None:
        for name, value in model.bn.named_buffers():
            value.copy_(kept[name])

    with bn_updates(model):
        sam(model, keep, put_back)


def test_an_overflow_under_grad_scaler_is_told_and_one_that_is_undone_is_a_hazard() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")

    def step() -> None:
        scaler.scale(model(torch.full((8, 4), float("inf"))).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    weights = copy.deepcopy(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    verdict = broken(model, step)
    assert model[0].weight.equal(weights)
    assert told(verdict)[0] == ("1.running_mean", "4 of 4 values are not finite")
    assert causes(verdict) == ["not-finite"]
    model.load_state_dict(before)

    def step_and_undo() -> None:
        with bn_updates(model):
            step()
            model.load_state_dict(before)

    with pytest.warns(InvariantHazard, match="were put back"):
        step_and_undo()


def test_warm_up_forwards_are_told_and_hold_where_they_are_undone() -> None:
    model = Net()

    def capture(*, restore: bool) -> None:
        kept = copy.deepcopy(model.bn.state_dict())
        for _ in range(3):
            model(values())
        if restore:
            for name, value in model.bn.named_buffers():
                value.copy_(kept[name])
        train(model, values())

    verdict = broken(model, lambda: capture(restore=False))
    expected = "4 updates, expected 1; 3 updates with a batch that had updated already"
    assert told(verdict) == [("bn", expected)]
    assert causes(verdict) == ["extra-forward"]
    with bn_updates(model):
        capture(restore=True)


def test_what_is_put_back_after_many_forwards_is_known() -> None:
    model = Net()
    with bn_updates(model):
        model(values())
        saved = copy.deepcopy(model.bn.state_dict())
        for _ in range(50):
            model(torch.randn(8, 3))
        model.bn.load_state_dict(saved)


def test_one_batch_may_update_once_in_each_optimizers_step_and_not_twice() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    def overfit(*, steps: bool) -> None:
        for _ in range(3):
            train(model, values(), step=steps)

    with bn_updates(model, times=3):
        overfit(steps=True)
    verdict = broken(model, lambda: overfit(steps=False), times=3)
    assert told(verdict) == [("0", "2 updates with a batch that had updated already")]


def test_batches_of_equal_means_are_told_apart() -> None:
    model = nn.BatchNorm1d(3)
    with bn_updates(model, times=2):
        for seed in range(2):
            half = values(seed)
            model(torch.cat([half, -half]))


def test_a_layer_that_is_stuck_in_eval_is_told_with_the_line() -> None:
    model = Net()

    def validate_and_train() -> None:
        model.eval()
        train(model, values())

    (cause,) = broken(model, validate_and_train).causes
    assert cause.name == "stuck-in-eval"
    assert cause.place is not None
    assert (cause.place.call, cause.place.function) == ("Net.eval()", "validate_and_train")


def test_an_update_in_eval_is_a_violation() -> None:
    class Always(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, training=True)

    model = Always(3).eval()
    verdict = broken(model, lambda: model(values()))
    assert told(verdict) == [("", "1 update in eval")]
    assert causes(verdict) == ["update-in-eval"]


def test_frozen_layers_are_left_alone_unless_they_are_named() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[0].eval().requires_grad_(False)
    with bn_updates(model) as guard:
        model(values())
    assert guard.verdict is not None
    assert guard.verdict.layers == 1
    assert causes(broken(model, lambda: model(values()), "0")) == ["stuck-in-eval"]
    with bn_updates(model, "0", times=0):
        model(values())


def test_two_networks_are_told_apart_by_name() -> None:
    gan = nn.ModuleDict({"generator": Net(), "critic": Net()})

    def step_of_the_critic() -> None:
        train(gan["critic"], values(0), values(1))

    with bn_updates(gan, "critic", times=2):
        step_of_the_critic()
    with bn_updates(gan["critic"], times=2):
        step_of_the_critic()
    verdict = broken(gan, step_of_the_critic, times=2)
    assert told(verdict) == [("generator.bn", "0 updates, expected 2")]
    assert causes(verdict) == ["not-run"]


def test_update_bn_starts_the_average_anew_and_holds() -> None:
    model = AveragedModel(Net())
    with bn_updates(model, times=3):
        update_bn(list(map(values, range(3))), model)


def warm() -> nn.BatchNorm1d:
    model = nn.BatchNorm1d(3)
    model(values(9))
    return model


def test_statistics_that_were_warm_may_be_taken_anew_by_an_average_of_all_batches() -> None:
    model = nn.Sequential(warm())
    with bn_updates(model, times=3):
        update_bn(list(map(values, range(3))), model)
    with bn_updates(model, times=3):
        model[0].reset_running_stats()
        model[0].momentum = None
        train(model, *map(values, range(3)))


@pytest.mark.parametrize(
    ("run", "times", "text", "cause"),
    [
        ("x r", 1, "0 updates, expected 1; written to besides its updates", "reset"),
        ("r x", 1, "written to besides its updates", "reset"),
        ("x r x", 2, "1 update, expected 2; written to besides its updates", "reset"),
        ("x l", 1, "0 updates, expected 1; written to besides its updates", "loaded"),
        ("l x", 1, "written to besides its updates", "loaded"),
    ],
)
def test_warm_statistics_that_are_reset_in_the_step_are_told(
    run: str, times: int, text: str, cause: str
) -> None:
    model = warm()
    steps = {
        "x": lambda: model(torch.randn(8, 3)),
        "r": model.reset_running_stats,
        "l": lambda: model.load_state_dict(nn.BatchNorm1d(3).state_dict()),
    }

    def all_steps() -> None:
        for each in run.split():
            steps[each]()

    verdict = broken(model, all_steps, times=times)
    assert told(verdict) == [("", text)]
    assert causes(verdict) == [cause]


def test_a_reset_after_compiled_code_ran_is_told() -> None:
    model = nn.Sequential(warm())
    compiled = torch.compile(model, backend="eager")

    def run() -> None:
        compiled(values())
        model[0].reset_running_stats()

    verdict = broken(model, run)
    assert told(verdict) == [("0", "0 updates, expected 1")]
    assert causes(verdict) == ["reset"]


def test_updates_that_are_partly_undone_are_told() -> None:
    model = nn.BatchNorm1d(3, momentum=None)

    def run() -> None:
        model(values(0))
        model.reset_running_stats()
        model(values(1))

    verdict = broken(model, run, times=2)
    assert told(verdict) == [("", "1 update, expected 2")]
    assert causes(verdict) == ["undone"]


def test_what_writes_besides_the_updates_is_told() -> None:
    model = Net()

    def write() -> None:
        train(model, values())
        model.bn.running_mean.add_(1)

    def load() -> None:
        train(model, values())
        model.load_state_dict(Net().state_dict() | {"bn.running_mean": torch.ones(4)})

    assert causes(broken(model, write)) == ["in-place"]
    (cause,) = broken(model, load).causes
    assert cause.name == "loaded"
    assert cause.place is not None
    assert cause.place.function == "load"


def test_momentum_zero_and_functional_call_leave_no_update() -> None:
    still = nn.BatchNorm1d(3, momentum=0.0)
    assert causes(broken(still, lambda: still(values()))) == ["momentum-zero"]
    model = nn.BatchNorm1d(3)

    def call() -> dict[str, Tensor]:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        torch.func.functional_call(model, state, (values(),))
        return state

    assert causes(broken(model, call)) == ["updated-elsewhere"]
    with bn_updates(model):
        model.load_state_dict(call())


def test_a_pass_for_swas_statistics_with_momentum_zero_is_told() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).train()

    def take_statistics(momentum: float | None) -> None:
        model[0].reset_running_stats()
        model[0].momentum = momentum
        for seed in range(4):
            model(values(seed))

    verdict = broken(model, lambda: take_statistics(0.0), times=4)
    assert told(verdict) == [("0", "0 updates, 4 forwards without, expected 4")]
    assert causes(verdict) == ["momentum-zero"]
    with bn_updates(model, times=4):
        take_statistics(None)


def test_statistics_that_a_half_dtype_rounds_away_are_a_hazard() -> None:
    model = nn.BatchNorm1d(2, momentum=0.001).bfloat16()
    model.running_mean.fill_(1.0)

    def run() -> None:
        with bn_updates(model, times="forwards"):
            for seed in range(20):
                model((values(seed, (16, 2)) + 0.2).bfloat16())

    with pytest.warns(InvariantHazard, match="dtype rounded the whole update away"):
        run()
    model.float()
    with bn_updates(model, times="forwards"):
        model(values(0, (16, 2)))


def test_a_variance_of_one_pass_is_told_where_it_cancels() -> None:
    class OnePass(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            mean, square = x.mean(0), x.square().mean(0)
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_((square - mean.square()) * (len(x) / (len(x) - 1)), 0.1)
            return x - mean

    model = OnePass(3)
    with bn_updates(model):
        model(values(shape=(256, 3)))
    verdict = broken(model, lambda: model(values(shape=(256, 3)) + 1e4))
    assert "running_var" in {change.name for change in verdict.changes}
    assert causes(verdict)[0] == "wrong-update"


def test_statistics_that_share_memory_are_told() -> None:
    model = nn.BatchNorm1d(4)
    model.running_var = model.running_mean
    verdict = broken(model, lambda: model(values(shape=(8, 4))))
    assert "wrong-update" in causes(verdict)
    assert {change.name for change in verdict.changes} >= {"running_mean"}


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


@pytest.mark.parametrize(
    "model",
    [
        nn.LazyBatchNorm1d(),
        nn.BatchNorm1d(3, momentum=None),
        nn.BatchNorm1d(3, affine=False),
        nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)),
        nn.SyncBatchNorm(3),
        nn.utils.parametrizations.weight_norm(nn.BatchNorm1d(3)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_layers_of_other_sorts_hold(model: nn.Module) -> None:
    with bn_updates(model):
        model.train()(values())


def test_an_instance_norm_that_tracks_is_counted_and_its_values_are_not_judged() -> None:
    model = nn.InstanceNorm1d(3, track_running_stats=True)
    with bn_updates(model) as guard:
        model(values(shape=(4, 3, 5)))
    assert guard.verdict is not None
    assert "were not checked against the reference" in guard.verdict.notes[0]
    assert told(broken(model, lambda: model(values(shape=(4, 3, 5))), times=2))


def test_models_of_timm_and_torchvision_hold() -> None:
    model = timm.create_model("resnet10t", num_classes=2)
    with bn_updates(model) as guard:
        train(model, values(shape=(2, 3, 64, 64)))
    assert guard.verdict is not None
    assert guard.verdict.layers > 10
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=64
    )
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    with bn_updates(detector, "backbone.body.*.1"):
        losses = detector.train()([torch.rand(3, 64, 64)] * 2, [target] * 2)
        sum(losses.values()).backward()


def test_autocast_and_frozen_parts_of_a_resnet_hold() -> None:
    model = resnet18(num_classes=2)
    model.layer1.requires_grad_(False).eval()
    with bn_updates(model) as guard, torch.autocast("cpu", torch.bfloat16):
        train(model, values(shape=(2, 3, 64, 64)))
    assert guard.verdict is not None
    assert guard.verdict.layers == 16


def test_a_step_in_which_nothing_ran_fails_and_so_does_a_model_without_such_layers() -> None:
    with pytest.raises(GateError, match="nothing ran inside bn_updates"), bn_updates(Net()):
        pass
    for model, text in (
        (nn.Linear(2, 2), "no BN layer"),
        (nn.BatchNorm1d(3, track_running_stats=False), "none of the BN layers has running stat"),
    ):
        with pytest.raises(GateError, match=text), bn_updates(model):
            pass
    frozen = Net().eval().requires_grad_(False)
    with pytest.raises(GateError, match="no BN layer is in training"), bn_updates(frozen):
        frozen(values())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"times": 1.5}, r"times= takes a number from 0, or \"forwards\"; got 1.5 \(float\)"),
        ({"times": True}, "times= takes a number"),
        ({"times": -1}, "times= takes a number"),
        ({"times": "steps"}, "got 'steps'"),
        ({"per": "epoch"}, 'per= takes "step" or "optimizer_step"; got \'epoch\''),
        ({"times": "forwards", "per": "optimizer_step"}, "leave per= out"),
    ],
)
def test_a_bad_argument_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(GateError, match=text):
        bn_updates(Net(), **options)
    with pytest.raises(GateError, match="'backbon' matches nothing"), bn_updates(Net(), "backbon"):
        pass


def test_a_step_that_raises_is_not_judged() -> None:
    with pytest.raises(ZeroDivisionError) as caught, bn_updates(Net()):
        _ = 1 / 0
    assert not getattr(caught.value, "__notes__", [])


def test_a_guarded_step_is_bit_for_bit_a_bare_one() -> None:
    bare, guarded = Net(), Net()
    guarded.load_state_dict(bare.state_dict())
    torch.manual_seed(3)
    train(bare, torch.randn(8, 3), torch.randn(8, 3))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with bn_updates(guarded, times=2):
        train(guarded, torch.randn(8, 3), torch.randn(8, 3))
    assert torch.get_rng_state().equal(after)
    for name, value in bare.state_dict().items():
        assert value.equal(guarded.state_dict()[name]), name


def test_a_long_step_keeps_few_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_history, "_KNOWN", 16)
    layer = nn.BatchNorm1d(3)

    def run(count: int) -> int:
        with bn_updates(layer, times=count):
            tracemalloc.start()
            for seed in range(count):
                layer(values(seed))
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return held

    run(50)
    assert run(400) < run(100) + 20_000


@pytest.mark.parametrize("broadcast", [True, False])
def test_both_ranks_of_ddp_hold_and_see_a_second_forward(
    broadcast: bool, ranks: Callable[..., list[Any]]
) -> None:
    found = ranks("updating_rank.py", str(int(broadcast)))
    assert found == [{"one": [], "two": ["extra-forward"], "sharded": []}] * 2
