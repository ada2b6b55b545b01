"""Look up the private names of torch that this package uses, and say what it does without them.

All of them are here, except that dynamo's are in `dynamo`, since importing dynamo takes a second.
Each is looked up once, at import. If one is missing, either a fallback takes its place, or the
guard or trace that needs it raises a `GateError` when it starts.

Attributes that every `nn.Module` has are stable and are read in each forward, so they are used
directly; `MODULE_ATTRIBUTES` lists them. Some names occur as text: `_orig_mod`, the child of a
module that `torch.compile` returned; `_call_impl`, the function whose frames call a module; and
modules of torch whose frames are skipped in the search for a user's line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pkgutil import resolve_name
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bninvariants.errors import GateError


@dataclass(frozen=True, slots=True)
class PrivateName:
    """A private name of torch.

    Args:
        path: its module and its name in that module, as `module:name`.
        used_for: what this package does with it.
        without: what happens on a torch that lacks it.
        needed_by: what refuses to start without it; empty if there is a fallback.
        since: the oldest tested torch that has it.
        exists: whether this torch has it.
    """

    path: str
    used_for: str
    without: str
    needed_by: str
    since: str
    exists: bool


NAMES: list[PrivateName] = []
"""All names that have been looked up."""
_missing: list[PrivateName] = []
"""The names that are needed and that this torch lacks."""

A_GUARD, A_TRACE = "a guard", "--bn-trace"
MODULE_ATTRIBUTES = (
    "_buffers",
    "_compiled_call_impl",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_modules",
    "_parameters",
)


def find(path: str, *, used_for: str, without: str, default: Any, since: str = "2.4") -> Any:
    """Return the value of a private name of torch, or a fallback.

    Args:
        path: the module and the name in that module, as `module:name`.
        used_for: what this package does with it.
        without: what happens on a torch that lacks it.
        default: the fallback.
        since: the oldest tested torch that has it; 2.4 is the oldest that is supported.
    """
    value = _look_up(path, default)
    NAMES.append(PrivateName(path, used_for, without, "", since, value is not default))
    return value


def _need(path: str, *, used_for: str, by: str, default: Any = None) -> Any:
    """Return the value of a private name of torch; without it, a guard or a trace cannot start."""

    def refuse(*_: object, **__: object) -> Any:
        require(by)

    fallback = default or refuse
    value, without = _look_up(path, fallback), f"{by} refuses to start"
    name = PrivateName(path, used_for, without, by, "2.4", value is not fallback)
    NAMES.append(name)
    if not name.exists:
        _missing.append(name)
    return value


def _look_up(path: str, default: Any) -> Any:
    try:
        return resolve_name(path)
    except (ImportError, AttributeError):
        return default


def require(what: str) -> None:
    """Check that a guard or a trace can start on this torch.

    Args:
        what: `A_GUARD` or `A_TRACE`.

    Raises:
        GateError: if this torch lacks a private name that the guard or the trace needs.
    """
    for name in _missing:
        if name.needed_by == what:
            path = name.path.replace(":", ".")
            raise GateError(
                f"torch {torch.__version__} has no {path}, which {what} needs {name.used_for}"
            )


def _leaves(nest: Any) -> list[Any]:
    if isinstance(nest, Mapping):
        nest = list(nest.values())
    return [x for part in nest for x in _leaves(part)] if isinstance(nest, list | tuple) else [nest]


def _is_wrapper(tensor: object) -> bool:
    """Tell whether a tensor's class has the methods that make it a traceable wrapper."""
    protocol = ("__tensor_flatten__", "__tensor_unflatten__")
    return type(tensor) is not Tensor and all(hasattr(tensor, method) for method in protocol)


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


# What is running.

DisableTorchFunction: Callable[[], AbstractContextManager[object]] = _need(
    "torch._C:DisableTorchFunction",
    used_for="to keep a user's function modes from seeing its own calls",
    by=A_GUARD,
)
current_graph_task_id: Callable[[], int] = find(
    "torch._C:_current_graph_task_id",
    used_for="recognising a forward that checkpointing runs again inside a backward",
    without="it counts like any other forward",
    default=lambda: -1,
)
ENGINE = "_engine_run_backward"
has_engine: bool = (
    find(
        f"torch.autograd:{ENGINE}",
        used_for="recognising steps that a user's own code takes along gradients",
        without="only the gradients that are there when an optimizer steps are seen",
        default=None,
    )
    is not None
)
peek_interpreter_stack: Callable[[], object] = find(
    "torch._C._functorch:peek_interpreter_stack",
    used_for="telling whether a function transform such as vmap runs",
    without="a forward inside one counts like any other forward",
    default=lambda: None,
)
count_function_modes: Callable[[], int] = find(
    "torch._C:_len_torch_function_stack",
    used_for="skipping precautions against function modes if there are none",
    without="the precautions are always taken",
    default=lambda: 1,
)
count_dispatch_modes: Callable[[], int] = find(
    "torch._C:_len_torch_dispatch_stack",
    used_for="skipping precautions against dispatch modes if there are none",
    without="the precautions are always taken",
    default=lambda: 1,
)
count_pre_dispatch_modes: Callable[[], int] = find(
    "torch._ops:_len_torch_dispatch_stack_pre_dispatch",
    used_for="skipping precautions against pre-dispatch modes if there are none",
    without="no precautions are taken against such modes, which only torch.export uses",
    default=lambda: 0,
)
disable_current_modes: Callable[[], AbstractContextManager[object]] = _need(
    "torch.utils._python_dispatch:_disable_current_modes",
    used_for="to keep a user's dispatch modes from seeing what it computes",
    by=A_GUARD,
)

# Modules.

_need("torch.nn:Module._call_impl", used_for="to see which modules are called", by=A_GUARD)
call_code: CodeType | None = find(
    "torch.nn:Module._wrapped_call_impl.__code__",
    used_for="recognising the frame of a module that runs compiled code instead of its forward",
    without="only compiled code is seen to run, and not which module runs it",
    default=None,
)
global_forward_hooks: Mapping[int, Any] = find(
    "torch.nn.modules.module:_global_forward_hooks",
    used_for="telling whether a hook may flip a BN layer's mode before or after its forward",
    without="global hooks are not taken into account",
    default={},
)
global_forward_pre_hooks: Mapping[int, Any] = find(
    "torch.nn.modules.module:_global_forward_pre_hooks",
    used_for="telling whether a hook may flip a BN layer's mode before or after its forward",
    without="global hooks are not taken into account",
    default={},
)
_INSTANCE_NORMS = (
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LazyInstanceNorm1d, nn.LazyInstanceNorm2d, nn.LazyInstanceNorm3d),
)
_BATCH_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d),
)
InstanceNorm: Any = find(
    "torch.nn.modules.instancenorm:_InstanceNorm",
    used_for="recognising an InstanceNorm by its base class",
    without="it is recognised by the public classes",
    default=_INSTANCE_NORMS,
)
NormBase: Any = find(
    "torch.nn.modules.batchnorm:_NormBase",
    used_for="recognising a BatchNorm or InstanceNorm by its base class",
    without="it is recognised by the public classes",
    default=_BATCH_NORMS + _INSTANCE_NORMS,
)
_ = find(
    "torch.distributed:_broadcast_coalesced",
    used_for="finding out when DDP broadcasts buffers",
    without="a change by such a broadcast is reported without its cause",
    default=None,
)

# Tensors.

version_counter: Callable[[Tensor], int | None] = find(
    "torch:Tensor._version.__get__",
    used_for="evidence that a tensor was written in place",
    without="there is no such evidence",
    default=lambda tensor: None,
)
sparse_indices: Callable[[Tensor], Tensor] = find(
    "torch:Tensor._indices",
    used_for="reading a sparse tensor as it is",
    without="it is read as coalescing leaves it",
    default=lambda tensor: tensor.coalesce().indices(),
)
sparse_values: Callable[[Tensor], Tensor] = find(
    "torch:Tensor._values",
    used_for="reading a sparse tensor as it is",
    without="it is read as coalescing leaves it",
    default=lambda tensor: tensor.coalesce().values(),
)
flatten_dense_tensors: Callable[[list[Tensor]], Tensor] = find(
    "torch._utils:_flatten_dense_tensors",
    used_for="joining the values of many tensors in one call",
    without="each is flattened, and the results are joined",
    default=_joined,
)
is_traceable_wrapper_subclass: Callable[[object], bool] = find(
    "torch.utils._python_dispatch:is_traceable_wrapper_subclass",
    used_for="recognising a tensor that is made of others, such as a DTensor",
    without="it is recognised by its methods",
    default=_is_wrapper,
)
tree_leaves: Callable[[Any], list[Any]] = find(
    "torch.utils._pytree:tree_leaves",
    used_for="finding the numbers beside the tensors of a wrapper subclass",
    without="they are only found in lists, tuples and dicts",
    default=_leaves,
)

# Tracing and devices.

TorchDispatchMode: Any = _need(
    "torch.utils._python_dispatch:TorchDispatchMode",
    used_for="to look at each operator",
    by=A_TRACE,
    default=object,
)
DisableTorchDispatch: Callable[[], AbstractContextManager[object]] = _need(
    "torch._C:_DisableTorchDispatch",
    used_for="to keep modes from seeing its own calls",
    by=A_TRACE,
)
current_dispatch_modes: Callable[[], list[Any]] = _need(
    "torch.utils._python_dispatch:_get_current_dispatch_mode_stack",
    used_for="to stop wherever it is in the stack of modes",
    by=A_TRACE,
)
pop_mode: Callable[[], Any] = _need(
    "torch.utils._python_dispatch:_pop_mode",
    used_for="to stop wherever it is in the stack of modes",
    by=A_TRACE,
)
push_mode: Callable[[Any], None] = _need(
    "torch.utils._python_dispatch:_push_mode",
    used_for="to stop wherever it is in the stack of modes",
    by=A_TRACE,
)
_OpOverload: Any = find(
    "torch._ops:OpOverload",
    used_for="reading off an operator's declaration which arguments it writes to",
    without="any argument may be written to",
    default=(),
)
_schema: object = find(
    "torch:ops.aten.add.Tensor._schema",
    used_for="reading off an operator's declaration which arguments it writes to",
    without="any argument may be written to",
    default=None,
)
added_kind: Callable[[], str] = find(
    "torch._C:_get_privateuse1_backend_name",
    used_for="finding the kind of device that a package added to torch, such as npu",
    without="auto and all do not find it; --bn-device takes its name",
    default=lambda: "privateuseone",
)
xpu_is_compiled: Callable[[], bool] = find(
    "torch.xpu:_is_compiled",
    used_for="saying that torch is built without XPU support, rather than that there is no device",
    without="the message says that there is no device",
    default=lambda: True,
)


def declared_arguments(operator: Any) -> Any:
    """Return the arguments that an operator's schema declares; None if it has no schema."""
    has_schema = _schema is not None and isinstance(operator, _OpOverload)
    return operator._schema.arguments if has_schema else None
