"""A guarded run is bit for bit a bare one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_bninvariants import frozen, frozen_bn
from tests.invariants.neutral_runs import Guard, around, audit, bare, everything, seed

GUARDS = pytest.mark.parametrize("guard", [frozen, frozen_bn, audit])


class Small(nn.Module):
    """Convolutions with BN and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.norm = nn.Dropout(0.3), nn.InstanceNorm2d(8, track_running_stats=True)
        self.head = nn.Linear(8, 4)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.norm(self.drop(F.relu(self.bn(self.conv(batch))))).mean((2, 3)))


def small_and_leaking() -> nn.Module:
    model = Small()
    model.bn.requires_grad_(False)
    model.norm.requires_grad_(False)
    return model


class Attention(nn.Module):
    """A transformer's layer over tokens that a BN has normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bn = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, batch: Tensor) -> Tensor:
        tokens = self.bn(self.embed(batch).transpose(1, 2)).transpose(1, 2)
        return self.head(self.layer(tokens).mean(1))


def images() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(3):
        yield torch.randn(4, 3, 8, 8), torch.randint(4, (4,))


def tokens() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(3):
        yield torch.randn(4, 5, 6), torch.randint(4, (4,))


def with_momentum(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for batch, label in images():
        optimizer.zero_grad()
        F.cross_entropy(model(batch), label).backward()
        optimizer.step()
    return [optimizer]


def with_a_scaler(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    for batch, label in tokens():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(batch), label)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    return [optimizer]


def between_modes(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, foreach=True)
    for batch, label in images():
        model.train()
        F.cross_entropy(model(batch), label).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(batch)
    return [optimizer]


def with_a_closure(model: nn.Module) -> list[torch.optim.Optimizer]:
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    batch, label = next(images())

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), label)
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[arg-type]
    return [optimizer]


LOOPS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "momentum": (Small, with_momentum),
    "scaler": (Attention, with_a_scaler),
    "modes": (Small, between_modes),
    "leak": (small_and_leaking, between_modes),
    "closure": (Small, with_a_closure),
}


def trained(
    guard: Guard, build: Callable[[], nn.Module], loop: Callable[[Any], Any]
) -> dict[str, object]:
    seed()
    model = build()
    with around(guard, model) if guard is not bare else bare(model):
        optimizers = loop(model)
    return everything(model, optimizers)


@GUARDS
@pytest.mark.parametrize(("build", "loop"), LOOPS.values(), ids=LOOPS)
def test_training_is_bit_identical(
    guard: Guard, build: Callable[[], nn.Module], loop: Callable[[Any], Any]
) -> None:
    assert trained(guard, build, loop) == trained(bare, build, loop)


def test_the_comparison_itself_can_fail() -> None:
    def off(model: nn.Module) -> list[torch.optim.Optimizer]:
        optimizers = with_momentum(model)
        torch.rand(1)
        return optimizers

    assert trained(bare, Small, off) != trained(bare, Small, with_momentum)


@GUARDS
def test_a_guard_draws_no_random_numbers_and_touches_no_tensor(guard: Guard) -> None:
    seed()
    model = Small().eval()
    batch = torch.randn(2, 3, 8, 8)
    objects = [id(t) for t in [*model.parameters(), *model.buffers()]]
    memory = [t.data_ptr() for t in [*model.parameters(), *model.buffers()]]
    before = everything(model, [])
    with guard(model):
        assert everything(model, []) == before
        model(batch)
    after = everything(model, [])
    assert {key for key in after if after[key] != before[key]} <= {  # which torch 2.4 touches
        "norm.running_mean flags",
        "norm.running_var flags",
    }
    assert [id(t) for t in [*model.parameters(), *model.buffers()]] == objects
    assert [t.data_ptr() for t in [*model.parameters(), *model.buffers()]] == memory


@GUARDS
def test_a_users_own_modes_do_not_see_the_guard(guard: Guard) -> None:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(  # type: ignore[no-untyped-def]
            self, func, types, args=(), kwargs=None
        ):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(  # type: ignore[no-untyped-def]
            self, func, types, args=(), kwargs=None
        ):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    model = small_and_leaking() if guard is audit else Small().eval()
    batch = torch.randn(2, 3, 8, 8)

    def recorded(guard: Guard) -> list[str]:
        seen.clear()
        with Functions(), Dispatch(), guard(model):
            model(batch)
        return list(seen)

    assert recorded(guard) == recorded(bare)


@GUARDS
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_guard_can_be_put_around_and_inside_of_gradient_modes(
    guard: Guard, mode: Callable[[], Any]
) -> None:
    model, batch = Small().eval(), torch.randn(2, 3, 8, 8)
    with mode(), guard(model):
        model(batch)
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    with guard(model), mode():
        model(batch)
        assert inside == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
