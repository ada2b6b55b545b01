"""Optimizer steps are heard."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants import frozen
from tests.instrumentation.recorder import Recorder, recording


def test_steps_of_any_optimizer_are_heard(net: Any) -> None:
    class Own(Optimizer):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            pass

    made = [Own(net.parameters(), {}), torch.optim.Adam(net.parameters())]
    with recording() as recorder:
        for optimizer in made:
            optimizer.step()
    assert recorder.events("optimizer") == made


def test_a_step_inside_anothers_ends_first_and_both_are_heard_to_end(net: Any) -> None:
    plain = torch.optim.SGD(net.parameters())

    class Outer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            plain.step()
            return super().step(closure)

    outer = Outer(net.parameters())
    with recording() as recorder:
        outer.step()
    assert recorder.events("optimizer") == [plain, outer, outer]


def test_an_optimizer_whose_step_raises_does_not_keep_its_model_alive() -> None:
    net = nn.Linear(2, 2)
    optimizer, weight = torch.optim.LBFGS(net.parameters()), weakref.ref(net.weight)

    def fails() -> float:
        raise ValueError

    with suppress(ValueError), frozen(net):
        net(torch.ones(1, 2))
        optimizer.step(fails)
    del net, optimizer
    gc.collect()
    assert weight() is None


def test_a_closure_is_told_however_it_is_passed() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    with recording() as recorder:
        optimizer.step()
        optimizer.step(lambda: 1.0)
        optimizer.step(closure=lambda: 1.0)
        optimizer.step(closure=None)
    kinds = [kind for kind, _ in recorder.recorded]
    assert kinds == ["optimizer", "closure", "closure", "optimizer"]


def test_a_backward_is_told_with_the_gradients_that_it_returned() -> None:
    class Listener(Recorder):
        def saw_backward(self, returned: Mapping[int, Tensor]) -> None:
            self.recorded.append(("backward", returned))

    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    with recording(Listener()) as recorder:
        (2 * used).sum().backward()
        (2 * used).sum().backward(inputs=[used])
        first, second = torch.autograd.grad((2 * used).sum(), [used, unused], allow_unused=True)
    assert second is None
    assert recorder.events("backward")[:2] == [{}, {}]
    (returned,) = recorder.events("backward")[2:]
    assert isinstance(returned, dict)
    assert returned.keys() == {id(used)}
    assert returned[id(used)] is first


def test_a_load_that_raises_at_its_end_is_heard_to_end() -> None:
    class Listener(Recorder):
        def before_load(self, module: nn.Module, state: object, frame: Any) -> Any:
            self.recorded.append(("state", state))
            assert frame.f_code.co_filename == __file__
            return super().before_load(module, state, frame)

    net, state = nn.Linear(1, 1), {"weight": torch.ones(1, 1)}
    with recording(Listener()) as recorder:
        with suppress(RuntimeError):
            net.load_state_dict(state)
        net.load_state_dict(state_dict=state, strict=False)
        with suppress(TypeError):
            net.load_state_dict(None)  # type: ignore[arg-type]
    assert recorder.events("load") == [net, net, net]
    assert [each == state for each in recorder.events("state")] == [True, True, False]


def test_a_collective_is_told_with_its_tensors_wherever_they_are() -> None:
    first, second = torch.ones(1), torch.ones(1)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        with recording() as recorder:
            torch.distributed.broadcast(first, 0)
            torch.distributed.all_gather([first], tensor=second)
    finally:
        torch.distributed.destroy_process_group()
    told = [(name, [id(each) for each in tensors]) for name, tensors in recorder.recorded]
    assert told[0] == ("broadcast", [id(first)])
    assert told[-1] == ("all_gather", [id(first), id(second)])
