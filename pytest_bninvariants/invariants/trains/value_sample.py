"""A few values of a tensor, which tell in little time whether and in which direction it moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bninvariants.snapshot.reads.together import read_together
from pytest_bninvariants.snapshot.tensor_bytes import (
    OUT_OF_MEMORY,
    READ_ERRORS,
    are_backed,
    are_plain,
    is_plain,
    values_of,
)

_MOST_VALUES = 256
_JOINED_AS_THEY_ARE = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
_MOSTLY = 0.9
_HARDLY = 0.3
_FEW_VALUES = 32  # so many unrelated values correlate by less than that, most often


def samples_of(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return some values of each tensor, spread over it; the host waits once for each device.

    Returns:
        All values of a small tensor, some 256 of a large one, float64 on the CPU; None for one that
        is not there or cannot be read.
    """
    groups: dict[tuple[torch.dtype, torch.device], list[tuple[int, Tensor]]] = defaultdict(list)
    present = [(number, tensor) for number, tensor in enumerate(tensors) if tensor is not None]
    joinable = _are_joinable([tensor for _, tensor in present])
    for number, tensor in present:
        piece = _thinned(tensor.reshape(-1)) if joinable else _spread(tensor)
        if piece is not None:
            groups[piece.dtype, piece.device].append((number, piece))
    try:
        joined = read_together([torch.cat([p for _, p in group]) for group in groups.values()])
    except OUT_OF_MEMORY:  # of a device: what is copied whole to the host takes none there
        return samples_of([None if each is None else each.detach().cpu() for each in tensors])
    samples: list[Tensor | None] = [None] * len(tensors)
    for group, values in zip(groups.values(), joined, strict=True):
        sizes = [len(piece) for _, piece in group]
        split = torch.split_with_sizes(values.to(torch.float64), sizes)
        for (number, _), sample in zip(group, split, strict=True):
            samples[number] = sample
    return samples


def _are_joinable(tensors: Sequence[Tensor]) -> bool:
    """Tell whether the values of all tensors can be joined as they are."""
    dtypes = {tensor.dtype for tensor in tensors} if are_plain(tensors) else {None}
    return _JOINED_AS_THEY_ARE.issuperset(dtypes) and are_backed(tensors)


def _spread(tensor: Tensor) -> Tensor | None:
    """Return some values of a tensor, where they are; None if they cannot be read."""
    if is_plain(tensor) and not are_backed([tensor]):
        return None
    if _are_joinable([tensor]):
        return _thinned(tensor.reshape(-1))
    try:
        flat = [_as_real(each.detach()).reshape(-1) for each in values_of(tensor)]
    except READ_ERRORS:
        return None
    some = [_thinned(each).cpu().to(torch.float64) for each in flat]
    return torch.cat(some) if some else None


def _thinned(flat: Tensor) -> Tensor:
    step = flat.numel() // _MOST_VALUES
    return flat[::step] if step > 1 else flat


def same_sample(one: Tensor | None, other: Tensor | None) -> bool:
    """Tell whether two samples are bit for bit the same."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.view(torch.int64), other.view(torch.int64))


def _as_real(values: Tensor) -> Tensor:
    return torch.view_as_real(values) if values.is_complex() else values


def are_parallel(move: Tensor, gradient: Tensor) -> bool:
    """Tell whether a move goes along a gradient, or against it, as steps of optimizers do.

    Either as a whole, or by the signs of the values, as the first step of Adam does.
    """
    if move.shape != gradient.shape:
        return False
    lengths = float(move.norm() * gradient.norm())
    if not 0 < lengths < float("inf"):
        return False
    moved = (move != 0) & (gradient != 0)
    agree = float((move.sign() == gradient.sign())[moved].double().mean()) if moved.any() else 0.5
    cosine = float(move @ gradient) / lengths
    return abs(cosine) >= _MOSTLY or abs(2 * agree - 1) >= _MOSTLY


def is_unlike(now: Tensor, before: Tensor) -> bool:
    """Tell whether values have nothing of those before them, as after an initialisation.

    What is clipped, scaled, masked, rounded or averaged still has.
    """
    if now.shape != before.shape:
        return False
    if not now.any():
        return bool(before.any())
    if len(now) < _FEW_VALUES or bool(((now == before) & (now != 0)).any()):
        return False
    centred = [values - values.mean() for values in (now, before)]
    lengths = float(centred[0].norm() * centred[1].norm())
    return 0 < lengths < float("inf") and abs(float(centred[0] @ centred[1])) < _HARDLY * lengths


@dataclass(slots=True)
class HandStep:
    """Whether a parameter moves along its gradient outside of any optimizer's step.

    Args:
        values: some of its values after the last backward pass.
        gradient: the same values of its gradient.
        trained: whether it moved along its gradient between two backward passes.
    """

    values: Tensor | None = None
    gradient: Tensor | None = None
    trained: bool = False

    @property
    def has_gradient(self) -> bool:
        """Tell whether the last backward pass left a gradient that is not zero."""
        return self.gradient is not None and bool(self.gradient.any())

    def note(self, values: Tensor | None, gradient: Tensor | None) -> None:
        """Note a sample of a parameter's values, and of its gradient after a backward pass."""
        old, along = self.values, self.gradient
        if old is not None and along is not None and values is not None:
            self.trained |= old.shape == values.shape and are_parallel(values - old, along)
        self.values, self.gradient = values, gradient
