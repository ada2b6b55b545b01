"""in_sync: two models hold the same state, one averages the other, or all ranks agree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pytest_bninvariants import GateError, InvariantBroken, Verdict, in_sync


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model(torch.randn(8, 4) + 3).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))


def said(judge: Callable[[], object]) -> str:
    with pytest.raises(InvariantBroken) as caught:
        judge()
    return " ".join(str(caught.value).split())


def hard_update(target: nn.Module, source: nn.Module, *, buffers: bool) -> None:
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
            mine.copy_(theirs)
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
            if buffers:
                mine.copy_(theirs)


# Two models that are to be the same.


def test_a_target_network_that_was_updated_without_its_buffers(model: nn.Sequential) -> None:
    target = copy.deepcopy(model)
    train(model)
    hard_update(target, model, buffers=False)
    told = said(lambda: in_sync(model, target))
    assert told.startswith("1 of 1 layer differs: 1 (left-behind)")
    assert "the running statistics of 1 in the second are the initial ones" in told
    assert "num_batches_tracked 1 -> 0" in told
    hard_update(target, model, buffers=True)
    verdict = in_sync(model, target, parameters=True)
    assert isinstance(verdict, Verdict)
    assert verdict.layers == 3


def test_parameters_are_compared_only_if_asked_for(model: nn.Sequential) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].bias += 1
    in_sync(model, other)
    assert "1 of 3 layers differs: 2" in said(lambda: in_sync(model, other, parameters=True))
    in_sync(model, other, "0", "1", parameters=True)
    in_sync(model, other, exclude="2", parameters=True)


def test_wrappers_do_not_change_names_and_what_they_hold_is_left_out(model: nn.Sequential) -> None:
    averaged = AveragedModel(model)
    in_sync(model, averaged, parameters=True)
    in_sync(nn.DataParallel(model), averaged, parameters=True)
    in_sync(torch.compile(model), copy.deepcopy(model), parameters=True)
    averaged.module[1].running_mean += 1
    assert "1.running_mean" in said(lambda: in_sync(averaged, model))


def test_a_name_that_only_one_of_them_has_is_told(model: nn.Sequential) -> None:
    other = copy.deepcopy(model)
    other.append(nn.BatchNorm1d(1))
    told = said(lambda: in_sync(model, other))
    assert "3.running_mean only in the second: buffer, float32 (1,)" in told
    assert "3.running_mean only in the first" in said(lambda: in_sync(other, model))
    other[1].running_mean = other[1].running_mean.double()
    assert "float32 -> float64" in said(lambda: in_sync(model, other))


def test_replicas_that_combine_statistics_with_their_own_count(model: nn.Sequential) -> None:
    batch = torch.randn(24, 6) + torch.linspace(0, 3, 24)[:, None]
    shards = [batch[:4], batch[4:]]

    def replica(rank: int, *, own_count: bool) -> nn.BatchNorm1d:
        """Combine the shards' statistics as a SyncBatchNorm does, or with this rank's count."""
        counts = [len(shards[rank] if own_count else shard) for shard in shards]
        means = torch.stack([shard.mean(0) for shard in shards])
        squares = torch.stack([shard.var(0, unbiased=False) for shard in shards])
        weights = torch.tensor(counts)[:, None] / sum(counts)
        layer = nn.BatchNorm1d(6)
        mean = (weights * means).sum(0)
        layer.running_mean.copy_(mean)
        variance = (weights * (squares + (means - mean).square())).sum(0)
        layer.running_var.copy_(variance * sum(counts) / (sum(counts) - 1))
        return layer

    in_sync(replica(0, own_count=False), replica(1, own_count=False))
    told = said(lambda: in_sync(replica(0, own_count=True), replica(1, own_count=True)))
    assert "running_var 6 of 6 values" in told


def test_statistics_that_were_transplanted_under_the_wrong_name() -> None:
    source = nn.BatchNorm1d(4)
    source(torch.randn(16, 4) - 3)
    mean, variance = source.running_mean, source.running_var

    def transplanted(variance: Tensor) -> nn.BatchNorm1d:
        layer = nn.BatchNorm1d(4)
        layer.running_mean, layer.running_var = mean.clone(), variance.clone()
        return layer

    in_sync(source, transplanted(variance), exclude="num_batches_tracked")
    told = said(lambda: in_sync(source, transplanted(mean), exclude="num_batches_tracked"))
    assert "running_var 4 of 4 values" in told
    assert "running_mean" not in told


# An average.


def ema_step(average: nn.Module, model: nn.Module, decay: float, *, buffers: bool = True) -> None:
    train(model)
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.mul_(decay).add_(theirs, alpha=1 - decay)
        for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
            if buffers:
                mine.copy_(theirs)


def test_an_average_of_parameters_alone_leaves_the_statistics_behind(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step(*, buffers: bool) -> None:
        with in_sync(model, average, decay=0.9):
            ema_step(average, model, 0.9, buffers=buffers)

    told = said(lambda: step(buffers=False))
    assert told.startswith("1 of 3 layers not averaged with decay 0.9: 1 (left-behind)")
    assert "1.num_batches_tracked 0, expected 1: not updated" in told
    assert "a loop over parameters() leaves behind" in told
    step(buffers=True)


def test_an_average_with_the_weights_the_wrong_way_round(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)
    train(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            ema_step(average, model, 0.1)

    assert "as if decay weighed the new value" in said(step)


@pytest.mark.parametrize(
    ("used", "why"),
    [
        (0.9, "was averaged with decay 0.9 fix"),
        (0.9801, "was averaged with decay 0.9801, as by 2 updates in one step fix"),
        (0.01, "was averaged with decay 0.01: the weights are the wrong way round fix"),
        (0.0, "was averaged with decay 0: it is a copy of the model fix"),
    ],
)
def test_an_average_with_another_decay_is_told_which(
    model: nn.Sequential, used: float, why: str
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99):
            ema_step(average, model, used)

    told = said(step)
    assert told.startswith(
        "3 of 3 layers not averaged with decay 0.99: 0, 1 and 1 more (other-decay)"
    )
    assert f"why other-decay: the second {why}" in told
    assert ("or say decay=0.9 where that is meant" in told) == (used == 0.9)


def test_one_layer_that_is_off_is_no_other_decay(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99):
            ema_step(average, model, 0.99)
            average[2].bias.data += 1

    told = said(step)
    assert told.startswith("1 of 3 layers not averaged with decay 0.99: 2 ")
    assert "why" not in told


def all_averaged(average: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for mine, theirs in zip(
            [*average.parameters(), *average.buffers()],
            [*model.parameters(), *model.buffers()],
            strict=True,
        ):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)


@pytest.mark.parametrize("used", [0.99, 0.9])
def test_buffers_that_are_averaged_and_not_copied_are_told(
    model: nn.Sequential, used: float
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99):
            train(model)
            all_averaged(average, model, used)

    told = said(step)
    assert "other-buffers: the buffers of 1 in the second are averaged, and not copied" in told
    assert 'fix say buffers="averaged" where that is meant' in told
    assert ("other-decay" in told) == (used == 0.9)


def test_buffers_that_are_copied_and_not_averaged_are_told(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99, buffers="averaged"):
            ema_step(average, model, 0.99)

    told = said(step)
    assert "other-buffers: the buffers of 1 in the second are copied, and not averaged" in told
    assert 'fix say buffers="copied" where that is meant' in told


def test_an_average_whose_own_forward_moved_its_statistics_is_told_so(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.99, buffers="averaged"):
            train(model)
            average(torch.randn(8, 4) - 3)
            all_averaged(average, model, 0.99)

    told = said(step)
    assert told.startswith("1 of 3 layers not averaged with decay 0.99: 1 (training-mode)")
    assert "1 in the second is in training mode, where each forward of its own moves" in told
    assert "fix put the average in eval: average.eval()" in told
    average.eval()
    step()


def test_an_average_in_float16_takes_copies_of_buffers_in_float16(model: nn.Sequential) -> None:
    average = copy.deepcopy(model).half()
    with in_sync(model, average, decay=0.5):
        ema_step(average, model, 0.5)


def test_an_average_in_float16_is_not_judged_by_its_buffers_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    nn.init.constant_(model[1].bias, 1.0)
    nn.init.constant_(model[0].bias, 1.0)
    average = copy.deepcopy(model).half()

    def step() -> None:
        with in_sync(model, average, decay=0.9999):
            train(model)
            for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)

    said = r"nothing moved far enough.*keep the average in torch\.float32, not torch\.float16$"
    with pytest.raises(GateError, match=said):
        step()


def test_the_buffers_tell_where_no_parameter_is_to_move(model: nn.Sequential) -> None:
    average = copy.deepcopy(model.requires_grad_(False))
    with in_sync(model, average, decay=0.9):
        model(torch.randn(8, 4))
        hard_update(average, model, buffers=True)


def test_an_average_that_is_not_updated_is_told_so(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            train(model)

    assert "no update of it ran in the step" in said(step)


def test_a_copy_is_no_average(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            train(model)
            hard_update(average, model, buffers=True)

    told = said(step)
    assert "a copy of the model's" in told
    assert told.startswith("3 of 3 layers not averaged with decay 0.9")


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_torchs_averaged_model_holds_from_its_first_update_on(
    model: nn.Sequential, decay: float, use_buffers: bool
) -> None:
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=use_buffers
    )
    train(model)
    for _ in range(3):
        with in_sync(model, average, decay=decay, buffers="averaged" if use_buffers else "copied"):
            train(model)
            average.update_parameters(model)


def test_buffers_that_are_averaged_are_no_copies(model: nn.Sequential) -> None:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9, buffers="copied"):
            train(model)
            average.update_parameters(model)

    assert said(step).startswith("1 of 3 layers not averaged with decay 0.9: module.1")


@pytest.mark.parametrize("kind", ["ModelEmaV2", "ModelEmaV3"])
@pytest.mark.parametrize(
    ("dtype", "decay"),
    [(torch.float32, 0.5), (torch.float32, 0.9998), (torch.bfloat16, 0.5), (torch.bfloat16, 0.9)],
)
def test_timms_averages_hold(
    model: nn.Sequential, kind: str, dtype: torch.dtype, decay: float
) -> None:
    utils = pytest.importorskip("timm.utils")
    average = getattr(utils, kind)(model, decay=decay)
    average.module.to(dtype)
    for _ in range(2):
        with in_sync(model, average, decay=decay, buffers="averaged"):
            train(model)
            average.update(model)


def test_an_average_in_bfloat16_that_cannot_move_so_little_is_not_taken_for_updated(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model).bfloat16()

    def step() -> None:
        with in_sync(model, average, decay=0.9998, buffers="averaged"):
            train(model)

    with pytest.raises(GateError, match="nothing moved far enough"):
        step()


def test_a_loop_of_lerps_holds(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)
    with in_sync(model, average, decay=0.99, buffers="averaged"):
        train(model)
        all_averaged(average, model, 0.99)


# Silence is never a pass.


def alike(model: nn.Module) -> nn.Module:
    other = nn.Sequential()
    for name, module in model.named_children():
        other.add_module(name, module)
    return other


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda m: in_sync(m, m), "got the same one twice"),
        (lambda m: in_sync(m, alike(m)), "both hold the very same tensors"),
        (lambda m: in_sync(m[0], m[0].to("cpu")), "same one twice"),
        (lambda m: in_sync(m[0], copy.deepcopy(m[0])), "parameters are compared with parameters="),
        (lambda m: in_sync(m, m[1]), "no name is in both models"),
        (lambda m: in_sync(m, copy.deepcopy(m), "bn"), "'bn' matches nothing in the model"),
        (lambda m: in_sync(m.state_dict(), m), "takes the model, a torch.nn.Module, first; got"),
        (
            lambda m: in_sync(m, "1"),
            r"takes another model, a torch.nn.Module, second; got '1' \(str",
        ),
        (lambda m: in_sync(m), "takes a second model; without one it compares the ranks"),
        (lambda m: in_sync(m, copy.deepcopy(m), decay=2), "decay= takes a number from 0 to 1"),
        (lambda m: in_sync(m, copy.deepcopy(m), decay=True), r"from 0 to 1; got True \(bool\)"),
        (lambda m: in_sync(m, copy.deepcopy(m), buffers="copied"), "buffers= is for decay="),
        (lambda m: in_sync(m, copy.deepcopy(m), decay=0.5, buffers="x"), 'takes "copied" or'),
        (lambda m: in_sync(m, decay=0.5), "takes the model and its average"),
    ],
)
def test_what_cannot_be_judged_is_named(
    model: nn.Sequential, judge: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(GateError, match=message):
        judge(model)


def sharing(model: nn.Sequential, *names: str) -> nn.Sequential:
    """Return a copy that shares some tensors with the model, as load_state_dict(assign=True)."""
    other = copy.deepcopy(model)
    shared = {name: model.state_dict()[name] for name in names}
    other.load_state_dict(shared, assign=True, strict=False)
    return other


STATISTICS = ("1.num_batches_tracked", "1.running_mean", "1.running_var")


def test_statistics_that_both_share_are_no_copies(model: nn.Sequential) -> None:
    other = sharing(model, *STATISTICS[:2])
    with pytest.raises(GateError, match=r"very same tensors '1\.num_bat.*', '1\.running_mean', so"):
        in_sync(model, other)
    in_sync(model, other, exclude=STATISTICS[:2])


def test_a_trainable_parameter_that_both_share_is_no_copy(model: nn.Sequential) -> None:
    other = sharing(model, "2.bias")
    with pytest.raises(GateError, match=r"the very same tensor '2\.bias', so"):
        in_sync(model, other, parameters=True)
    model[2].requires_grad_(False)
    in_sync(model, other, parameters=True)


def test_a_constant_that_both_share_is_nothing_to_tell(model: nn.Sequential) -> None:
    constant, other = torch.ones(3), copy.deepcopy(model)
    model.register_buffer("mean", constant)
    other.register_buffer("mean", constant)
    in_sync(model, other, parameters=True)
    with in_sync(model, other, decay=0.9):
        ema_step(other, model, 0.9)


@pytest.mark.parametrize("buffers", ["copied", "averaged"])
def test_an_average_that_shares_its_statistics_with_the_model_is_refused(
    model: nn.Sequential, buffers: Any
) -> None:
    average = sharing(model, *STATISTICS)
    with (
        pytest.raises(GateError, match=r"very same tensors '1\.running_mean', .*_tracked', so"),
        in_sync(model, average, decay=0.9, buffers=buffers),
    ):
        ema_step(average, model, 0.9, buffers=False)


def test_an_average_may_share_what_does_not_move(model: nn.Sequential) -> None:
    model[0].requires_grad_(False)
    average = sharing(model, "0.weight", "0.bias")
    with in_sync(model, average, decay=0.9):
        train(model)
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
            for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)


def test_an_average_that_comes_to_share_a_parameter_in_the_step_is_refused(
    model: nn.Sequential,
) -> None:
    average = copy.deepcopy(model)

    def step() -> None:
        with in_sync(model, average, decay=0.9):
            train(model)
            average[2].load_state_dict(model[2].state_dict(), assign=True)

    with pytest.raises(GateError, match="very same tensors"):
        step()


def test_tensors_that_are_tied_within_each_model_are_copies(model: nn.Sequential) -> None:
    model.append(model[2])
    model.append(nn.Linear(1, 1))
    model.append(model[1])
    average = copy.deepcopy(model)
    in_sync(model, average, parameters=True)


def nothing(model: nn.Module, average: nn.Module) -> Iterable[None]:
    return ()


def test_a_step_that_moves_nothing_cannot_tell_an_average(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)
    with (
        pytest.raises(GateError, match="nothing moved far enough"),
        in_sync(model, average, decay=0.9),
    ):
        nothing(model, average)


def test_a_name_that_only_one_has_cannot_be_an_average(model: nn.Sequential) -> None:
    average = copy.deepcopy(model)
    average.append(nn.Linear(1, 1))
    with (
        pytest.raises(GateError, match=r"only one of the two models has '3\.bias'"),
        in_sync(model, average, decay=0.9),
    ):
        nothing(model, average)


# Ranks.


def test_ranks_are_compared_with_each_other(ranks: Callable[..., list[Any]]) -> None:
    for found in ranks("syncing_rank.py"):
        assert found["built"] == found["wrapped"] == ""
        told = found["loaded on one rank"]
        assert told.startswith("1 of 3 layers differs between ranks: 1")
        assert "1.running_mean mean 0 on rank 0, mean 7 on rank 1" in told
