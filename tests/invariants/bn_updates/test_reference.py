"""Each update is what the reference says, within its bounds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given, settings
from torch import Tensor, nn

from pytest_bninvariants import InvariantBroken, InvariantHazard, bn_updates
from pytest_bninvariants.batchnorm.cases import Case
from pytest_bninvariants.batchnorm.strategies import bn_cases
from tests.invariants.bn_updates.steps import UNCHECKED, broken, causes, told, values
from tests.watching import watching

LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@given(bn_cases(modes=(True, True), tracking=True))
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_torchs_layers_are_updated_rightly_whatever_the_batch(case: Case) -> None:
    assume(case.momentum != 0 and case.batches[0] != case.batches[1])
    layer, step = made(case)
    with watching(bn_updates(layer, times=len(case.batches)), layers=1):
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
        with watching(bn_updates(layer), layers=1):
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
    with watching(bn_updates(model), layers=1):
        model(values())


@pytest.mark.parametrize(
    ("mistake", "tensors", "why"),
    [
        ("biased", {"running_var"}, "with the biased variance"),
        ("inverted", {"running_mean", "running_var"}, "as if momentum were 0.7"),
        ("deviation", {"running_var"}, "with the standard deviation"),
        ("mean stays", {"running_mean"}, "as if the batch had been ignored"),
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


def test_statistics_that_a_half_dtype_rounds_away_are_a_hazard() -> None:
    model = nn.BatchNorm1d(2, momentum=0.001).bfloat16()
    model.running_mean.fill_(1.0)

    def run() -> None:
        with watching(bn_updates(model, times="forwards"), layers=1):
            for seed in range(20):
                model((values(seed, (16, 2)) + 0.2).bfloat16())

    with pytest.warns(InvariantHazard, match="dtype rounded the whole update away"):
        run()
    model.float()
    with watching(bn_updates(model, times="forwards"), layers=1):
        model(values(0, (16, 2)))


def test_statistics_that_have_arrived_at_those_of_the_batch_are_no_hazard() -> None:
    halves, long = nn.BatchNorm1d(1, momentum=0.3).bfloat16(), nn.BatchNorm1d(3, momentum=0.5)
    halves.running_mean.fill_(1.5)
    halves.running_var.fill_(3.0)
    few = torch.tensor([0.0, 3.0, 0.0, 3.0], dtype=torch.bfloat16).unsqueeze(1)
    for _ in range(60):
        long(values())
    for model, batch in ((halves, few), (long, values())):
        before = model.running_mean.clone(), model.running_var.clone()
        with warnings.catch_warnings():
            warnings.simplefilter("error", InvariantHazard)
            with watching(bn_updates(model), layers=1):
                model(batch)
        assert model.running_mean.equal(before[0])
        assert model.running_var.equal(before[1])


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
    with watching(bn_updates(model), layers=1):
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
