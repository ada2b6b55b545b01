"""What the engine's tests share: a small model, a look at what torch must be left as."""

from __future__ import annotations

import sys
from typing import Any

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


def everything_wrapped() -> dict[str, Any]:
    """Return whatever of torch a guard might touch, as it is now."""
    optimizers = sys.modules[Optimizer.__module__]
    hooks = [name for name in vars(torch_module) if name.startswith("_global")]
    methods = ("__call__", "__setattr__", "__getattr__", "__delattr__", "train", "eval")
    more = ("_call_impl", "compile", "register_buffer", "load_state_dict")
    more += ("named_parameters", "state_dict")
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
