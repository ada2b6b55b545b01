"""Thirty-odd ways to write to a model's tensors, and a step that flips one bit by one of them."""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bninvariants import FrozenStateChanged, frozen


class Holder(nn.Module):
    """Tensors of many sizes and dtypes; running it does nothing, but is something that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(70, 70))  # large enough to be kept by itself
        self.brief = nn.Parameter(torch.randn(3, 5, 7).to(torch.bfloat16))
        self.bias = nn.Parameter(torch.randn(5))
        self.scale = nn.Parameter(torch.randn(()).double())
        self.register_buffer("mean", torch.randn(9))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("table", torch.randint(0, 255, (300_001,), dtype=torch.uint8))
        self.register_buffer("mask", torch.rand(11) > 0.5)
        self.register_buffer("steps", torch.arange(7000).to(torch.int32), persistent=False)
        self.sub = nn.BatchNorm1d(4).eval()

    def forward(self) -> None:
        pass


@dataclass(frozen=True)
class Flip:
    """One bit of one tensor, to be flipped.

    Args:
        owner: the module that holds the tensor.
        name: its name there.
        byte: where the bit is.
        bit: which it is.
    """

    owner: nn.Module
    name: str
    byte: int
    bit: int

    @property
    def tensor(self) -> Tensor:
        """Return the tensor that holds the name."""
        found = getattr(self.owner, self.name)
        assert isinstance(found, Tensor)
        return found

    @property
    def raw(self) -> Tensor:
        """Return the tensor's memory."""
        return self.tensor.detach().view(-1).view(torch.uint8)

    @property
    def flipped(self) -> Tensor:
        """Return a tensor like it, with the bit flipped."""
        new = self.tensor.detach().clone()
        new.view(-1).view(torch.uint8)[self.byte] ^= 1 << self.bit
        return new

    @property
    def index(self) -> int:
        """Return which value has the bit."""
        return self.byte // self.tensor.element_size()

    @property
    def mask(self) -> Tensor:
        """Return bytes to combine with the tensor's by XOR."""
        found = torch.zeros_like(self.raw)
        found[self.byte] = 1 << self.bit
        return found


def _index_put(f: Flip) -> None:
    at = torch.tensor([f.index], device=f.tensor.device)
    f.tensor.view(-1).index_put_((at,), f.flipped.view(-1)[at])


def _index_copy(f: Flip) -> None:
    at = torch.tensor([f.index], device=f.tensor.device)
    f.tensor.view(-1).index_copy_(0, at, f.flipped.view(-1)[at])


def _scatter(f: Flip) -> None:
    at = torch.tensor([f.index], device=f.tensor.device)
    f.tensor.view(-1).scatter_(0, at, f.flipped.view(-1)[at])


def _masked(f: Flip) -> None:
    at = torch.zeros(f.tensor.numel(), dtype=torch.bool, device=f.tensor.device)
    at[f.index] = True
    f.tensor.view(-1).masked_scatter_(at, f.flipped.view(-1)[at])


def _item(f: Flip) -> None:
    f.tensor.view(-1)[f.index] = f.flipped.view(-1)[f.index]


def _by_numpy(f: Flip) -> None:
    f.raw.numpy()[f.byte] ^= 1 << f.bit


def _by_memoryview(f: Flip) -> None:
    memoryview(f.raw.numpy())[f.byte] ^= 1 << f.bit


def _by_dlpack(f: Flip) -> None:
    torch.from_dlpack(f.raw)[f.byte] ^= 1 << f.bit


def _by_storage(f: Flip) -> None:
    storage = f.tensor.untyped_storage()
    at = f.tensor.storage_offset() * f.tensor.element_size() + f.byte
    storage[at] = int(storage[at]) ^ 1 << f.bit


def _by_address(f: Flip) -> None:
    byte = ctypes.c_uint8.from_address(f.tensor.data_ptr() + f.byte)
    byte.value ^= 1 << f.bit


def _by_memmove(f: Flip) -> None:
    new = f.flipped
    ctypes.memmove(f.tensor.data_ptr(), new.data_ptr(), new.nbytes)


def _by_thread(f: Flip) -> None:
    thread = threading.Thread(target=lambda: f.raw.bitwise_xor_(f.mask))
    thread.start()
    thread.join()


def _in_inference_mode(f: Flip) -> None:
    with torch.inference_mode():
        f.tensor.copy_(f.flipped)


def _by_script(f: Flip) -> None:
    _scripted(f.tensor.detach(), f.flipped)


@torch.jit.script
def _scripted(x: Tensor, new: Tensor) -> None:
    x.copy_(new)


def _in_backward(f: Flip) -> None:
    with torch.enable_grad():
        x = torch.ones(1, requires_grad=True)
        x.register_hook(lambda _: (f.raw.bitwise_xor_(f.mask), None)[1])
        (2 * x).sum().backward()


def _registered(f: Flip) -> None:
    registry = f.owner._parameters if f.name in f.owner._parameters else f.owner._buffers
    kind = nn.Parameter if registry is f.owner._parameters else lambda tensor: tensor
    registry[f.name] = kind(f.flipped)


def _by_data(f: Flip) -> None:
    f.tensor.data = f.flipped


def _swapped(f: Flip) -> None:
    new = f.flipped
    torch.utils.swap_tensors(f.tensor, nn.Parameter(new) if _is_parameter(f) else new)


def _is_parameter(f: Flip) -> bool:
    return isinstance(f.tensor, nn.Parameter)


def _loaded(f: Flip, *, assign: bool = False) -> None:
    f.owner.load_state_dict({f.name: f.flipped}, strict=False, assign=assign)
    if f.name in f.owner._non_persistent_buffers_set:  # which no state dict has
        f.tensor.copy_(f.flipped)


def _applied(f: Flip) -> None:
    target, new = f.tensor, f.flipped
    f.owner._apply(lambda tensor: new if tensor is target else tensor)


def _fused(f: Flip) -> None:
    """Have a fused optimizer move the value, where it is one that it can move."""
    value = f.tensor.view(-1)[f.index]
    if f.tensor.dtype != torch.float32 or not 2**-20 < abs(float(value)) < 2**20:
        torch._foreach_copy_([f.tensor], [f.flipped])
        return
    gradient = torch.zeros(f.tensor.numel(), device=f.tensor.device)
    gradient[f.index] = value
    parameter = nn.Parameter(f.tensor.detach())
    parameter.grad = gradient.view(f.tensor.shape)
    torch.optim.SGD([parameter], lr=0.5, fused=True).step()


def _by_split(f: Flip) -> None:
    pieces = f.raw.split(1000)
    pieces[f.byte // 1000][f.byte % 1000] ^= 1 << f.bit


WAYS: dict[str, Callable[[Flip], object]] = {
    "copy_": lambda f: f.tensor.copy_(f.flipped),
    "data.copy_": lambda f: f.tensor.data.copy_(f.flipped),
    "data =": _by_data,
    "detach": lambda f: f.tensor.detach().copy_(f.flipped),
    "set_": lambda f: f.tensor.set_(f.flipped),
    "item": _item,
    "index_put_": _index_put,
    "index_copy_": _index_copy,
    "scatter_": _scatter,
    "masked_scatter_": _masked,
    "xor": lambda f: f.raw.bitwise_xor_(f.mask),
    "out": lambda f: torch.bitwise_xor(f.raw, f.mask, out=f.raw),
    "as_strided": lambda f: f.tensor.as_strided((f.tensor.numel(),), (1,)).copy_(
        f.flipped.view(-1)
    ),
    "narrow": lambda f: f.raw.narrow(0, f.byte, 1).bitwise_xor_(1 << f.bit),
    "split": _by_split,
    "foreach": lambda f: torch._foreach_copy_([f.tensor], [f.flipped]),
    "fused": _fused,
    "numpy": _by_numpy,
    "memoryview": _by_memoryview,
    "dlpack": _by_dlpack,
    "storage": _by_storage,
    "address": _by_address,
    "memmove": _by_memmove,
    "thread": _by_thread,
    "inference mode": _in_inference_mode,
    "script": _by_script,
    "backward": _in_backward,
    "registry": _registered,
    "swap_tensors": _swapped,
    "load": _loaded,
    "load by assignment": lambda f: _loaded(f, assign=True),
    "_apply": _applied,
}
_ON_HOST = ("numpy", "memoryview", "storage", "address", "memmove")
_ON_HOST_OR_CUDA = ("dlpack",)


def ways_on(device: str) -> list[str]:
    """Return the ways that there are to write to the memory of a device."""
    kind = torch.device(device).type
    none = () if kind == "cpu" else _ON_HOST if kind == "cuda" else (*_ON_HOST, *_ON_HOST_OR_CUDA)
    return [way for way in WAYS if way not in none]


def draw(model: nn.Module, random: random.Random) -> tuple[str, Flip]:
    """Draw a bit of a model; of its tensors, and of their bytes, any is as likely as another."""
    names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    name = random.choice(names)
    owner, _, own = name.rpartition(".")
    flip = Flip(model.get_submodule(owner), own, 0, 0)
    byte = random.randrange(flip.tensor.nbytes)
    bit = 0 if flip.tensor.dtype is torch.bool else random.randrange(8)
    return name, Flip(flip.owner, own, byte, bit)


def state(model: nn.Module) -> dict[str, bytes]:
    """Return the bytes of all of a model's tensors, read without the help of what is tested."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    on_host = [(name, tensor.detach().cpu()) for name, tensor in tensors]
    return {name: ctypes.string_at(t.data_ptr(), t.nbytes) for name, t in on_host}


def missed(model: Holder, way: str, random: random.Random) -> str | None:
    """Flip a bit inside of a guard; return what went wrong with that, if anything did."""
    name, flip = draw(model, random)
    before = state(model)
    told: tuple[str, ...] = ()
    try:
        with torch.no_grad(), frozen(model):
            model()
            WAYS[way](flip)
    except FrozenStateChanged as failure:
        told = failure.verdict.changed_tensors
    after = state(model)
    changed = tuple(key for key in before if before[key] != after[key])
    if changed != (name,):
        return f"{way} did not write to {name} alone, but to {changed}"
    return None if told == changed else f"{way} wrote to {name}, and the guard told of {told}"


LEAVING: dict[str, Callable[[Holder], object]] = {
    "nothing": lambda model: None,
    "add nothing": lambda model: model.sub.weight.add_(-0.0),
    "load its own": lambda model: model.load_state_dict(model.state_dict()),
    "there and back": lambda model: model.steps.bitwise_not_().bitwise_not_(),
    "replace by a copy": lambda model: setattr(model, "mean", model.mean.clone()),
    "read": lambda model: (model.weight @ model.weight).sum(),
    "move its memory": lambda model: setattr(model.weight, "data", model.weight.data.clone()),
}


def alarmed(model: Holder, way: str) -> bool:
    """Run a step that changes nothing, and tell whether the guard says that it did."""
    try:
        with torch.no_grad(), frozen(model):
            model()
            LEAVING[way](model)
    except FrozenStateChanged:
        return True
    return False
