"""What the engine's tests share: a small model, and a look at what torch must be left as."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.callback import callback_handler
from torch.nn.modules import module as torch_module
from torch.optim import Optimizer


class Net(nn.Module):
    """Two BN layers that a test freezes or not, and a head without one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.conv = nn.Conv1d(2, 3, 1)
        self.backbone.bn = nn.BatchNorm1d(3)
        self.neck = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 1)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(self.neck(self.backbone(batch)).mean(-1))


@pytest.fixture
def net() -> Net:
    """A model in eval, whose statistics are not the initial ones."""
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(4, 2, 5))
    return model.eval()


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(1))


def everything_wrapped() -> dict[str, Any]:
    """Return whatever of torch a guard might touch, as it is now."""
    optimizers = sys.modules[Optimizer.__module__]
    hooks = [name for name in vars(torch_module) if name.startswith("_global")]
    methods = ("__call__", "__setattr__", "__getattr__", "__delattr__", "train", "eval")
    more = ("_call_impl", "compile", "register_buffer", "load_state_dict")
    module = {name: vars(nn.Module)[name] for name in (*methods, *more)}
    return {
        **{f"Module.{name}": method for name, method in module.items()},
        **{f"the code of Module.{name}": method.__code__ for name, method in module.items()},
        **{f"torch.{name}": getattr(torch, name) for name in ("batch_norm", "instance_norm")},
        **{name: getattr(nn.functional, name) for name in ("batch_norm", "instance_norm")},
        **{name: repr(getattr(torch_module, name)) for name in hooks},
        "optimizer pre hooks": dict(optimizers._global_optimizer_pre_hooks),
        "optimizer post hooks": dict(optimizers._global_optimizer_post_hooks),
        "Optimizer": dict(vars(Optimizer)),
        "dynamo start": list(callback_handler.start_callbacks),
        "dynamo end": list(callback_handler.end_callbacks),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "function enabled": torch._C._is_torch_function_enabled(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
    }


@pytest.fixture
def torch_state() -> Callable[[], dict[str, Any]]:
    return everything_wrapped


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was() -> Iterator[None]:
    """Let every test of this folder fail that leaves something of a guard behind."""
    compiler = sys.modules.get("torch._dynamo.convert_frame")
    if getattr(compiler, "FRAME_COUNTER", 0):
        torch._dynamo.reset()  # it compiles a function anew only so many times
    before = everything_wrapped()
    methods = {name: vars(nn.Module)[name] for name in ("_call_impl", "compile", "__setattr__")}
    setattr_ = methods["__setattr__"]
    code = setattr_.__code__
    functions = torch.batch_norm, torch.instance_norm
    yield
    after = everything_wrapped()
    for name, method in methods.items():  # a test that fails must not take the others with it
        setattr(nn.Module, name, method)
    setattr_.__code__ = code
    torch.batch_norm, torch.instance_norm = functions
    assert after == before


@pytest.fixture
def pending() -> dict[int, str]:
    """The engine's list of guards that were made and not entered."""
    from pytest_bninvariants.invariants import guards

    return guards.pending


def run_ranks(script: str, *arguments: str) -> list[Any]:
    """Run a script in two processes that find each other, and return what each prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = str(Path(__file__).with_name(script))
    ranks = [
        subprocess.Popen([sys.executable, path, str(n), port, *arguments], stdout=subprocess.PIPE)
        for n in range(2)
    ]
    return [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]


@pytest.fixture
def ranks() -> Callable[..., list[Any]]:
    return run_ranks
