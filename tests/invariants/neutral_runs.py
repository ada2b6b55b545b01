"""Guards and layers that the tests of neutrality share."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged
from pytest_bninvariants.audit.auditor import Auditor

Guard = Callable[..., Any]


@contextlib.contextmanager
def audit(model: nn.Module) -> Iterator[None]:
    auditor = Auditor()
    auditor.start()
    try:
        yield
    finally:
        auditor.stop()


def bare(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext()


@contextlib.contextmanager
def around(guard: Guard, model: nn.Module) -> Iterator[None]:
    """Guard a step that may well break the invariant."""
    with contextlib.suppress(FrozenStateChanged), guard(model):
        yield


def in_bytes(value: object) -> object:
    """Return a value as something that compares bit for bit."""
    if isinstance(value, Tensor):
        flat = value.detach().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: in_bytes(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [in_bytes(part) for part in value]
    return value


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def everything(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, object]:
    """Return all that a step may leave: state, gradients, randomness, hooks, modes."""
    found: dict[str, object] = {
        "rng": in_bytes(torch.get_rng_state()),
        "python rng": random.getstate(),
        "numpy rng": pickle.dumps(np.random.get_state()),
        "grad enabled": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled(),
        "optimizers": [in_bytes(optimizer.state_dict()) for optimizer in optimizers],
        "hooks of optimizers": [
            [len(getattr(o, name)) for name in vars(o) if name.endswith("_hooks")]
            for o in optimizers
        ],
    }
    for name, module in model.named_modules():
        found[f"{name} keys"] = sorted(vars(module))
        found[f"{name} training"] = module.training
        found[f"{name} hooks"] = [len(getattr(module, hooks)) for hooks in HOOKS]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = in_bytes(tensor)
        found[f"{name} grad"] = in_bytes(tensor.grad)
        found[f"{name} flags"] = tensor.requires_grad, tensor.is_leaf, tensor._version
        found[f"{name} strides"] = tensor.stride(), tensor.storage_offset()
    return found


def seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


class OwnForward(nn.BatchNorm1d):
    def forward(self, batch: Tensor) -> Tensor:
        return F.batch_norm(
            batch,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


class Compiled(nn.Module):
    def __init__(self, bn: nn.Module) -> None:
        super().__init__()
        self.first, self.bn, self.last = nn.Linear(4, 3), bn, nn.Linear(3, 2)

    def forward(self, batch: Tensor) -> Tensor:
        return self.last(F.relu(self.bn(self.first(batch))))
