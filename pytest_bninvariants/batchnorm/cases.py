"""A case: how to make a layer, the state that it starts from, and the batches that it gets.

A case is plain data. Its tensors are made from seeds, by code that a report can print.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor

LITERAL_VALUES = 32  # longer tensors are printed as the code that makes them
CONTIGUOUS = ("contiguous",)
DENSE = ("contiguous", "channels_last", "offset", "later")  # without gaps or overlaps in memory
LAYOUTS = (
    "contiguous",
    "channels_last",
    "transposed",
    "swapped",
    "sliced",
    "strided",
    "offset",
    "expanded",
    "cropped",
    "later",
    "batch_last",
    "one_channel",
    "narrowed",
    "windows",
)
LEAST_DIMS = {
    "channels_last": 4,
    "swapped": 3,
    "cropped": 4,
    "later": 4,
    "batch_last": 3,
    "narrowed": 4,
}  # of the others: 2
DEFAULTS: dict[str, Any] = {  # of nn.BatchNorm's constructor
    "eps": 1e-5,
    "momentum": 0.1,
    "affine": True,
    "track_running_stats": True,
    "bias": True,
}
_CROPPED = "torch.cat((x, x), -1).contiguous(memory_format=torch.{})[..., : x.shape[-1]]"
_NARROWED = "torch.cat((x, x), 1).contiguous(memory_format=torch.{})[:, : x.shape[1]]"
_LATER = "torch.cat((x[:1], x)).contiguous(memory_format=torch.{})[1:]"
_VIEWS = {
    "contiguous": "x",
    "channels_last": "x.contiguous(memory_format=torch.channels_last)",
    "channels_last_3d": "x.contiguous(memory_format=torch.channels_last_3d)",
    "transposed": "x.transpose(0, 1).contiguous().transpose(0, 1)",
    "swapped": "x.transpose(-1, -2).contiguous().transpose(-1, -2)",
    "sliced": "torch.cat((x, x), 1)[:, : x.shape[1]]",
    "strided": "torch.stack((x, torch.zeros_like(x)), -1)[..., 0]",
    "offset": "torch.cat((x.new_zeros(3), x.flatten()))[3:].view(x.shape)",
    "expanded": "x[:1].expand(x.shape)",
    "cropped": _CROPPED.format("channels_last"),
    "cropped_3d": _CROPPED.format("channels_last_3d"),
    "later": _LATER.format("channels_last"),
    "later_3d": _LATER.format("channels_last_3d"),
    "batch_last": "x.movedim(0, -1).contiguous().movedim(-1, 0)",
    "one_channel": "x[:, :1].expand(x.shape)",
    "narrowed": _NARROWED.format("channels_last"),
    "narrowed_3d": _NARROWED.format("channels_last_3d"),
    "windows": "x.flatten().repeat(2)[: len(x) + x[0].numel()].unfold(0, x[0].numel(), 1)"
    "[: len(x)].view(x.shape)",
}
_COMPILED_VIEWS = {name: compile(code, "<layout>", "eval") for name, code in _VIEWS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch of normally distributed values, with different statistics in each channel.

    Args:
        shape: (N, C, *), 2 to 5 dimensions.
        seed: the seed of its values.
        sigma: standard deviation in channel 0; the next two have a half and a quarter of it.
        kappa: mean over standard deviation; signs alternate from channel to channel.
        rectified: whether negative values are set to 0, as by a ReLU.
        layout: its layout in memory, one of `LAYOUTS`.
        dtype: name of its dtype, such as `float32`.
    """

    shape: tuple[int, ...]
    seed: int = 0
    sigma: float = 1.0
    kappa: float = 0.0
    rectified: bool = False
    layout: str = "contiguous"
    dtype: str = "float32"

    @property
    def positions(self) -> int:
        """Return the number of a sample's positions."""
        return math.prod(self.shape[2:])

    def tensor(self, device: str = "cpu") -> Tensor:
        """Return its values in its layout, on a device."""
        x = self.values().to(getattr(torch, self.dtype)).to(device)
        view: Tensor = eval(_COMPILED_VIEWS[self.view_name], {"torch": torch, "x": x})
        return view

    def values(self) -> Tensor:
        """Return its values in float64."""
        x = _draw_normal(self.seed, *self.shape)
        c = torch.arange(self.shape[1], device="cpu").view(-1, *[1] * (len(self.shape) - 2))
        x = (x + self.kappa * (1 - c % 2 * 2)) * self.sigma / 2 ** (c % 3)
        return x.relu() if self.rectified else x

    @property
    def view_name(self) -> str:
        """Return the name of the layout's view, which for some layouts depends on the rank."""
        of_volumes = f"{self.layout}_3d"
        return of_volumes if of_volumes in _VIEWS and len(self.shape) == 5 else self.layout

    def source(self, device: str = "cpu") -> list[str]:
        """Return lines of code that make it on a device, as `x`."""
        x = self.values().to(getattr(torch, self.dtype))
        if x.numel() <= LITERAL_VALUES:
            lines = [f"x = {literal(x)}"]
        else:
            c = f"torch.arange({self.shape[1]}).view(-1{', 1' * (len(self.shape) - 2)})"
            lines = [
                f"generator = torch.Generator().manual_seed({self.seed})",
                f"x = torch.randn({self.shape}, generator=generator, dtype=torch.float64)",
                f"c = {c}",
                f"x = (x + {self.kappa!r} * (1 - c % 2 * 2)) * {self.sigma!r} / 2 ** (c % 3)",
                *(["x = x.relu()"] if self.rectified else []),
                f"x = x.to(torch.{self.dtype})",
            ]
        if device != "cpu":
            lines.append(f"x = x{_moved_to(device)}")
        if self.view_name != "contiguous":
            lines.append(f"x = {_VIEWS[self.view_name]}")
        return lines


def _draw_normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A layer, its state, and its batches.

    Args:
        batches: the batches in their order, at least one.
        eps: the layer's eps.
        momentum: the layer's momentum, a number or None.
        affine: whether the layer has a weight and, unless `bias` is False, a bias.
        bias: whether an affine layer has a bias.
        track_running_stats: whether the layer has running statistics.
        seed: the seed of weight, bias and running statistics; None: those of a new layer.
        count: the counter's value at the start.
        modes: whether the layer is in training, for each batch.
        dtype: name of the inputs' dtype.
        state_dtype: name of the layer's dtype.
        device: the layer's device.
        plain_gradient: whether the loss is the output's sum, and not a random combination.
    """

    batches: tuple[Batch, ...]
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    bias: bool = True
    track_running_stats: bool = True
    seed: int | None = None
    count: int = 0
    modes: tuple[bool, ...] = (True,)
    dtype: str = "float32"
    state_dtype: str = "float32"
    device: str = "cpu"
    plain_gradient: bool = False

    @property
    def channels(self) -> int:
        """Return C, the number of channels."""
        return self.batches[0].shape[1]

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the layer's constructor, by name."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def state(self) -> dict[str, Tensor]:
        """Return the state that the layer starts from, by name; empty for that of a new layer.

        The running variance is spread around eps, so that eps shows, around 1 and far above. Of
        five seeds one gives a weight of all ones and two a weight with a zero: kernels and ports
        treat both as special cases.
        """
        if self.seed is None:
            return {}
        dtype = getattr(torch, self.state_dtype)
        rows = _draw_normal(self.seed, 4, self.channels).to(dtype).double()
        names = {"torch": torch, "rows": rows}
        code = self._state_code()
        return {name: eval(_compiled(each), names).to(dtype) for name, each in code.items()}

    def _state_code(self) -> dict[str, str]:
        """Return the code of each part of the state, from four `rows` of normal values."""
        assert self.seed is not None
        weight = "rows[0].sign() * (rows[0].abs() + 0.25)"
        if self.seed % 5 == 3:
            weight = "torch.ones_like(rows[0])"
        elif self.seed % 5 in (1, 4):
            weight = f"torch.cat((({weight})[:-1], rows.new_zeros(1)))"
        half = self.state_dtype == "float16"  # in it 1e5 overflows, and eps is subnormal
        around = 1.0 if half else (1.0, self.eps, 1e5)[self.seed % 3]
        code = {"weight": weight} if self.affine else {}
        if self.affine and self.bias:
            code["bias"] = "rows[1]"
        if self.track_running_stats:
            code |= {"running_mean": "rows[2]", "running_var": f"{around!r} * rows[3].exp()"}
        return code

    def state_source(self, name: str, value: Tensor) -> list[str]:
        """Return lines of code that make a part of the state, as `value`."""
        if value.numel() <= LITERAL_VALUES:
            return [f"value = {literal(value)}"]
        dtype = f"torch.{self.state_dtype}"
        drawn = _normal_code(self.seed, (4, self.channels))
        return [
            f"rows = {drawn}.to({dtype}).double()",
            f"value = ({self._state_code()[name]}).to({dtype})",
        ]

    def gradient(self, index: int) -> Tensor:
        """Return the gradient with respect to a batch's output, in the input's dtype."""
        batch = self.batches[index]
        return (
            _draw_normal(batch.seed + 1, *batch.shape)
            .to(getattr(torch, self.dtype))
            .to(self.device)
        )

    def gradient_source(self, index: int) -> str:
        """Return code that makes the gradient with respect to a batch's output."""
        batch, moved = self.batches[index], _moved_to(self.device)
        if math.prod(batch.shape) <= LITERAL_VALUES:
            return literal(self.gradient(index)) + moved
        return f"{_normal_code(batch.seed + 1, batch.shape)}.to(torch.{self.dtype}){moved}"


@lru_cache(maxsize=256)
def _compiled(code: str) -> CodeType:
    return compile(code, "<state>", "eval")


def _normal_code(seed: int | None, shape: tuple[int, ...]) -> str:
    generator = f"torch.Generator().manual_seed({seed})"
    return f"torch.randn({shape}, generator={generator}, dtype=torch.float64)"


def _moved_to(device: str) -> str:
    return "" if device == "cpu" else f".to({device!r})"


def literal(value: Tensor) -> str:
    """Return code that makes a tensor's values, exactly."""
    dtype = str(value.dtype)
    if not value.numel():
        return f"torch.zeros({tuple(value.shape)}, dtype={dtype})"
    text = str(value.detach().cpu().tolist())
    for word in ("inf", "nan"):
        text = text.replace(word, f"float('{word}')")
    return f"torch.tensor({text}, dtype={dtype})"
