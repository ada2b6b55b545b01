"""Drawn batches under a guard: the smallest that leaks is shown, and nothing is suppressed."""

from __future__ import annotations

import pytest
import torch

from pytest_bninvariants import devices as known_devices
from tests.plugin.sessions import Sessions

STEP = """
from hypothesis import given, settings
from pytest_bninvariants import frozen_bn, train_batches

calm = settings(database=None, derandomize=True, deadline=None)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 10)
        self.eval()

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def step(net, batch, leaks_above):
    inputs, targets = batch
    net.train(len(inputs) > leaks_above)
    nn.functional.cross_entropy(net(inputs), targets).backward()


batches = train_batches((3, 4, 4), classes=10)
"""


@pytest.mark.parametrize("limit", [0, 1, 7, 20])
def test_a_marked_test_shows_the_smallest_batch_that_leaks(sessions: Sessions, limit: int) -> None:
    session = sessions.run(
        f"""
        @pytest.fixture(scope="module")
        def net():
            return Conv()

        @pytest.mark.frozen_bn
        @calm
        @given(batch=batches)
        def test_drifts(net, batch):
            step(net, batch, leaks_above={limit})

        @pytest.mark.frozen_bn
        @calm
        @given(batch=batches)
        def test_holds(net, batch):
            step(net, batch, leaks_above=99)
    """,
        before=STEP,
    )
    session.tells_apart()
    assert f"TrainBatch.of(({limit + 1}, 3, 4, 4), classes=10, seed=0)" in session.output
    assert "HealthCheck" not in session.output


def test_a_model_made_in_the_test_needs_no_suppression_either(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @calm
        @given(batch=batches)
        def test_drifts(batch):
            net = Conv()
            with frozen_bn(net):
                step(net, batch, leaks_above=3)

        @calm
        @given(batch=batches)
        def test_holds(batch):
            net = Conv()
            with frozen_bn(net):
                step(net, batch, leaks_above=99)
    """,
        before=STEP,
    )
    session.tells_apart()
    assert "TrainBatch.of((4, 3, 4, 4), classes=10, seed=0)" in session.output


def test_a_function_scoped_model_is_still_for_hypothesis_to_refuse(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.fixture
        def net():
            return Conv()

        @pytest.mark.frozen_bn
        @given(batch=batches)
        def test_step(net, batch):
            step(net, batch, leaks_above=99)
    """,
        before=STEP,
    )
    assert session.outcomes == {"test_step": "failed"}
    assert "function-scoped fixture" in session.texts["test_step"].lower()


def test_the_devices_of_the_run_reach_strategies_made_at_import(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_devices, "why_absent", lambda kind, index: None)
    original = torch.Tensor.to

    def pretended(tensor: torch.Tensor, *args: object) -> torch.Tensor:
        return original(tensor, *("meta" if arg == "cuda:1" else arg for arg in args))

    monkeypatch.setattr(torch.Tensor, "to", pretended)
    session = sessions.run(
        """
        seen = set()

        @calm
        @given(batch=batches)
        def test_draws(batch):
            seen.add(batch.inputs.device.type)

        def test_saw_both():
            assert seen == {"cpu", "meta"}
    """,
        "--bn-device=cpu",
        "--bn-device=cuda:1",
        before=STEP,
    )
    assert set(session.outcomes.values()) == {"passed"}


def test_accumulates_takes_what_is_drawn(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def loss(net, batch):
            return nn.functional.cross_entropy(net(batch.inputs), batch.targets)

        calm = settings(calm, max_examples=20)
        several = train_batches((3, 4, 4), classes=10, batch_sizes=range(2, 20))

        @calm
        @given(batch=several)
        def test_adds_up(accumulates, batch):
            accumulates(Conv(), batch, 2, loss=loss)

        @calm
        @given(batch=several)
        def test_mixes(accumulates, batch):
            accumulates(Conv().train(), batch, 2, loss=loss)
    """,
        before=STEP,
    )
    assert session.outcomes == {"test_adds_up": "passed", "test_mixes": "failed"}
    assert "gradients do not add up" in session.summaries["test_mixes"]
    assert "TrainBatch.of((2, 3, 4, 4), classes=10, seed=0)" in session.output
