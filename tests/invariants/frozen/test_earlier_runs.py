"""A rerun compares with the state before the first run, and only where it is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, Verdict, frozen, frozen_bn, run_config
from pytest_bninvariants.invariants.frozen import earlier_runs
from pytest_bninvariants.run_config import RunConfig
from tests.watching import watching


def drift_once(net: Any, batch: Tensor, guard: Any = frozen_bn) -> None:
    """Move the statistics in a way that the model itself remembers, so that it happens once."""
    with guard(net, "neck"):
        net.train(bool(net.neck.num_batches_tracked < 2))(batch)


def test_a_model_that_drifted_is_still_broken_in_the_rerun(net: Any, batch: Tensor) -> None:
    runs = earlier_runs.EarlierRuns()
    for _ in range(3):
        runs.begin_run()
        with earlier_runs.remembering(runs), pytest.raises(FrozenStateChanged) as caught:
            drift_once(net, batch)
        assert caught.value.verdict.changed_layers == ("neck",)


def test_without_a_memory_every_guard_begins_anew(net: Any, batch: Tensor) -> None:
    with earlier_runs.remembering(None):
        with pytest.raises(FrozenStateChanged):
            drift_once(net, batch)
        drift_once(net, batch)


def test_each_guard_of_one_spelling_is_compared_with_itself(net: Any, batch: Tensor) -> None:
    runs = earlier_runs.EarlierRuns()
    for _ in range(2):
        runs.begin_run()
        with earlier_runs.remembering(runs):
            with pytest.raises(FrozenStateChanged):
                drift_once(net, batch)
            with watching(frozen_bn(net, "neck"), layers=1, tensors=5):
                net.eval()(batch)


@pytest.mark.parametrize("other", [frozen, frozen_bn])
def test_a_guard_within_the_same_run_begins_anew(net: Any, batch: Tensor, other: Any) -> None:
    runs = earlier_runs.EarlierRuns()
    runs.begin_run()
    with earlier_runs.remembering(runs):
        with pytest.raises(FrozenStateChanged):
            drift_once(net, batch)
        drift_once(net, batch, other)


def test_a_model_that_was_made_anew_is_compared_with_itself(net: Any, batch: Tensor) -> None:
    runs = earlier_runs.EarlierRuns()
    for training in (True, False):
        runs.begin_run()
        model = type(net)()
        model.train(training)
        guard = frozen_bn(model)
        with earlier_runs.remembering(runs):
            if training:
                with pytest.raises(FrozenStateChanged), guard:
                    model(batch)
            else:
                with guard:
                    model(batch)


def test_a_model_that_was_put_back_holds_in_the_rerun(net: Any, batch: Tensor) -> None:
    runs = earlier_runs.EarlierRuns()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    runs.begin_run()
    with earlier_runs.remembering(runs), pytest.raises(FrozenStateChanged):
        drift_once(net, batch)
    net.load_state_dict(state)
    runs.begin_run()
    with earlier_runs.remembering(runs), frozen_bn(net, "neck"):
        net.eval()(batch)


def broken_in_the_rerun(
    net: Any, first: Callable[[], object], again: Callable[[], object]
) -> Verdict:
    runs = earlier_runs.EarlierRuns()
    for step in (first, again):
        runs.begin_run()
        with (
            earlier_runs.remembering(runs),
            pytest.raises(FrozenStateChanged) as caught,
            frozen(net),
        ):
            step()
    return caught.value.verdict


def test_what_an_earlier_run_did_has_its_cause_and_is_said_to_be_earlier(
    net: Any, batch: Tensor
) -> None:
    verdict = broken_in_the_rerun(net, lambda: net.train()(batch), lambda: net.eval()(batch))
    (cause,) = verdict.causes
    assert cause.name == "mode-flip"
    assert cause.why.endswith("; that was in an earlier run of this test")
    assert "compared with the state before an earlier run of this test" in verdict.notes[0]


def test_what_moved_again_has_the_cause_of_this_run(net: Any, batch: Tensor) -> None:
    def leak() -> None:
        net.train()(batch)

    def leak_and_write() -> None:
        leak()
        net.get_parameter("backbone.conv.weight").data.add_(1)

    verdict = broken_in_the_rerun(net, leak_and_write, leak)
    told = {cause.name: cause for cause in verdict.causes}
    assert [*told] == ["training-mode", "in-place"]
    assert "earlier" not in told["training-mode"].why
    assert "earlier" in told["in-place"].why
    assert told["in-place"].tensors == ("backbone.conv.weight",)
    assert not broken_in_the_rerun(net, leak, leak).notes


def test_a_model_to_which_a_fixture_gave_other_values_is_compared_with_these(
    net: Any, batch: Tensor
) -> None:
    runs = earlier_runs.EarlierRuns()
    for training in (True, False):
        runs.begin_run()
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                module.reset_parameters()
        net.train(training)
        with earlier_runs.remembering(runs):
            if training:
                with pytest.raises(FrozenStateChanged), frozen(net):
                    net(batch)
            else:
                with watching(frozen(net), layers=4, tensors=14):
                    net(batch)


def test_the_memory_in_use_is_put_back() -> None:
    before = earlier_runs.active
    with earlier_runs.remembering(earlier_runs.EarlierRuns()), earlier_runs.remembering(None):
        assert earlier_runs.active is None
    assert earlier_runs.active is before


def test_what_only_fingerprints_showed_is_kept_exactly_by_the_next_guard() -> None:
    class Large(nn.Linear):
        """A class of its own: the memory goes by classes."""

    net = Large(100, 100)
    assert not earlier_runs.to_keep_exactly(net, "frozen()")
    for budget in (0, None):
        with (
            run_config.activate(RunConfig(snapshot_budget=budget)),
            pytest.raises(FrozenStateChanged) as caught,
            frozen(net),
        ):
            net.weight.data[3, 4] += 1
        assert [change.exact for change in caught.value.verdict.changes] == [budget is None]
        assert set(earlier_runs.to_keep_exactly(net, "frozen()")) == {"weight"}
    assert not earlier_runs.to_keep_exactly(net, "frozen_bn()")
