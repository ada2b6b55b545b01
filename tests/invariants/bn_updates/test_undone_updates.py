"""Updates that the step undoes, and what else writes to running statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from pytest_bninvariants import InvariantHazard, bn_updates
from tests.invariants.bn_updates.steps import Net, broken, causes, told, train, values
from tests.watching import watching


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
        with watching(bn_updates(model), layers=1):
            sam(model, second, after)
    kept: dict[str, Tensor] = {}

    def keep(model: Net) -> None:
        kept.update({name: value.clone() for name, value in model.bn.named_buffers()})

    def put_back(model: Net) -> None:
        for name, value in model.bn.named_buffers():
            value.copy_(kept[name])

    with watching(bn_updates(model), layers=1):
        sam(model, keep, put_back)


@pytest.mark.parametrize("momentum", [1.0, None, 0.1])
def test_a_reset_matters_only_to_an_average_that_goes_on_from_it(momentum: float | None) -> None:
    model = nn.BatchNorm1d(3, momentum=momentum)
    model(values(1))

    def step() -> None:
        model.reset_running_stats()
        model(values(2))

    if momentum == 0.1:
        assert causes(broken(model, step)) == ["reset"]
        return
    with watching(bn_updates(model), layers=1):
        step()


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
        with watching(bn_updates(model), layers=1):
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
    expected = "4 updates, expected 1; 3 updates with a batch that it had already used"
    assert told(verdict) == [("bn", expected)]
    assert causes(verdict) == ["extra-forward"]
    with watching(bn_updates(model), layers=1):
        capture(restore=True)


def test_what_is_put_back_after_many_forwards_is_known() -> None:
    model = Net()
    with watching(bn_updates(model), layers=1):
        model(values())
        saved = copy.deepcopy(model.bn.state_dict())
        for _ in range(50):
            model(torch.randn(8, 3))
        model.bn.load_state_dict(saved)


def test_update_bn_starts_the_average_anew_and_holds() -> None:
    model = AveragedModel(Net())
    with watching(bn_updates(model, times=3), layers=1):
        update_bn(list(map(values, range(3))), model)


def warm() -> nn.BatchNorm1d:
    model = nn.BatchNorm1d(3)
    model(values(9))
    return model


def test_statistics_that_were_warm_may_be_taken_anew_by_an_average_of_all_batches() -> None:
    model = nn.Sequential(warm())
    with watching(bn_updates(model, times=3), layers=1):
        update_bn(list(map(values, range(3))), model)
    with watching(bn_updates(model, times=3), layers=1):
        model[0].reset_running_stats()
        model[0].momentum = None
        train(model, *map(values, range(3)))


@pytest.mark.parametrize(
    ("run", "times", "text", "cause"),
    [
        ("x r", 1, "0 updates, expected 1; written to outside its updates", "reset"),
        ("r x", 1, "written to outside its updates", "reset"),
        ("x r x", 2, "1 update, expected 2; written to outside its updates", "reset"),
        ("x l", 1, "0 updates, expected 1; written to outside its updates", "loaded"),
        ("l x", 1, "written to outside its updates", "loaded"),
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
