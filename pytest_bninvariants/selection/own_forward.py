"""What a layer's own forward may do to the layer's tensors, as far as its class tells."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

from torch import nn

from pytest_bninvariants.selection.bn_layers import has_known_forward


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnForward:
    """The forward of a layer that ran in eager code and may have written the layer's own tensors.

    Args:
        in_training: whether it ran in training mode.
        reads_mode: whether the code of its class reads `training`.
        writes_parameters: whether it may write parameters, too, and not only buffers.
        max_norm: the norm to which it scales down the rows that it looks up; None for no such.
    """

    in_training: bool
    reads_mode: bool
    writes_parameters: bool
    max_norm: object

    @property
    def stops_in_eval(self) -> bool:
        """Tell whether eval() may have kept it from writing."""
        return self.in_training and self.reads_mode


def own_forward_of(layer: nn.Module, *, in_training: bool) -> OwnForward | None:
    """Return what the forward of a layer that ran may have done; None if it wrote nothing.

    Torch's own forward of a BN layer only writes when it uses batch statistics, which the witness
    sees.

    Args:
        layer: the layer.
        in_training: whether it ran in training mode.
    """
    if has_known_forward(layer):
        return None
    max_norm = getattr(layer, "max_norm", None) if _is_torchs(layer) else None
    hooked = bool(layer._forward_pre_hooks or layer._forward_hooks)
    return OwnForward(
        in_training=in_training,
        reads_mode=any("training" in code.co_names for code in _code_of(type(layer))),
        writes_parameters=hooked or max_norm is not None or not _is_torchs(layer),
        max_norm=max_norm,
    )


def _is_torchs(layer: nn.Module) -> bool:
    """Tell whether a layer's forward is torch's own."""
    forward = inspect.getattr_static(type(layer), "forward")  # scripted modules make theirs lazily
    own = getattr(forward, "__module__", "").startswith("torch.nn.")
    return own and "forward" not in vars(layer)


def _code_of(kind: type) -> Iterator[CodeType]:
    """Yield the code of the methods that a class and its bases below `nn.Module` define."""
    for base in kind.__mro__:
        if base is nn.Module:
            return
        for value in vars(base).values():
            code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
            if isinstance(code, CodeType):
                yield from _with_nested(code)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)
