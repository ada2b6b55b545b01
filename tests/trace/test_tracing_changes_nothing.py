"""A traced run computes what a bare run computes, and leaves nothing behind."""

from __future__ import annotations

import pickle
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18

from pytest_bninvariants import FrozenStateChanged, frozen
from pytest_bninvariants.guard_registry import Finding
from pytest_bninvariants.run_config import Trace, override
from tests.trace.tracing import ALL, Small, Step, add, broken, copy, traced


def train_the_head(model: Any) -> None:
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_a_model_whose_head_trains_has_no_writes_but_those_to_the_head() -> None:
    model = resnet18(num_classes=10).eval()
    with override(trace=ALL), frozen(model, exclude="fc") as guard:
        writes = broken(frozen(model), lambda: train_the_head(model)).verdict.writes
    assert guard.verdict.holds
    assert (guard.verdict.layers, guard.verdict.tensors) == (40, 120)
    assert [write.name for write in writes] == ["fc.weight", "fc.bias"]


def state_after(step: Step, *, trace: Trace | None) -> list[Tensor]:
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    with override(trace=trace), suppress(FrozenStateChanged), frozen(model):
        step(model)
    return [*model.state_dict().values(), torch.get_rng_state(), torch.randn(3)]


@pytest.mark.parametrize("trace", [ALL, Trace(names=frozenset({"bn1.running_mean"}))])
def test_traced_and_bare_runs_are_bit_identical(trace: Trace) -> None:
    def step(model: Any) -> None:
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            features = F.dropout(model(torch.randn(4, 3, 64, 64)), 0.2)
            F.cross_entropy(features, torch.arange(4)).backward()
            optimizer.step()

    pairs = zip(state_after(step, trace=None), state_after(step, trace=trace), strict=True)
    assert all(torch.equal(bare, traced) for bare, traced in pairs)


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class CountingFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Counting, CountingFunctions])
@pytest.mark.parametrize("outside", [True, False])
def test_a_users_mode_sees_what_it_sees_without_tracing(
    kind: type[Counting | CountingFunctions], outside: bool
) -> None:
    def seen(trace: Trace | None) -> list[str]:
        model, mode = Small(), kind()
        guard = frozen(model)
        contexts = [mode, guard] if outside else [guard, mode]
        with override(trace=trace), suppress(FrozenStateChanged), contexts[0], contexts[1]:
            model(torch.ones(2, 3)).sum().backward()
            add(model)
            model.mean.add_(0)
        return [name for name in mode.seen if "detach" not in name]  # autograd may add or save one

    assert seen(ALL) == seen(Trace(names=frozenset({"mean"}))) == seen(None)


def test_a_mode_that_is_left_after_the_guard_stays() -> None:
    mode, model = Counting(), Small()
    with override(trace=ALL):
        guard = frozen(model)
        guard.start()
        mode.__enter__()
        model(torch.ones(2, 3))
        guard.stop()
        mode.seen.clear()
        torch.ones(1)
        mode.__exit__(None, None, None)
    assert mode.seen == ["aten.ones.default"]
    assert guard.finish().holds


def test_a_step_that_raises_leaves_no_mode_behind(findings: list[Finding]) -> None:
    def step(model: Any) -> None:
        with frozen(model):
            add(model)
            raise ValueError("own")

    with override(trace=ALL), pytest.raises(ValueError, match="own") as caught:
        step(Small())
    assert "who  aten.add_.Tensor wrote fc.weight" in caught.value.__notes__[0]
    (lost,) = findings
    assert lost.carrier is caught.value
    findings.clear()


def test_sparse_and_fake_tensors_beside_the_model_do_no_harm() -> None:
    from torch._subclasses import FakeTensorMode

    def step(model: Any) -> None:
        torch.eye(3).to_sparse().mul_(2)
        torch.ones(2, device="meta").add_(1)
        with FakeTensorMode():
            torch.ones(2).add_(1)
        torch.func.vmap(torch.sin)(torch.ones(2, 3))
        copy(model)

    (write,) = traced(Small(), step).writes
    assert write.name == "mean"


def test_writes_are_plain_data() -> None:
    writes = traced(Small(), add).writes
    assert pickle.loads(pickle.dumps(writes)) == writes
