"""Keep what was seen of one model during one step."""

from __future__ import annotations

from dataclasses import dataclass
from types import FrameType
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from pytest_bninvariants.invariants import observers
from pytest_bninvariants.invariants.normalisation import has_known_forward, uses_batch_statistics
from pytest_bninvariants.invariants.places import place_of_mode_call
from pytest_bninvariants.invariants.selection import Selection, is_bn_layer, own_tensors
from pytest_bninvariants.invariants.verdict import Place


@dataclass(slots=True)
class Seen:
    """What a witness saw of one BN layer.

    Args:
        batches: forwards that normalised with batch statistics.
        in_compiled_code: whether a compiled module above it ran while its mode said to use them;
            the forward itself cannot be seen then.
        flipped: whether it was in eval and then put in training mode.
        put_in_training: where it was put in training mode, last before its first such forward.
    """

    batches: int = 0
    in_compiled_code: bool = False
    flipped: bool = False
    put_in_training: Place | None = None

    @property
    def used_batch_statistics(self) -> bool:
        """Tell whether it normalised with batch statistics, as far as its mode tells."""
        return self.batches > 0 or self.in_compiled_code


class Witness:
    """Watch one model during one step; `seen` and `ran` are read afterwards.

    Args:
        model: the model.
        selection: what is watched in it.
    """

    def __init__(self, model: nn.Module, selection: Selection) -> None:
        self._model = model
        self._selection = selection
        self._watched = {id(module) for module in selection.modules.values()}
        self._marks = _marks(model)
        self._forward_seen = False
        self._optimizer_seen = False
        self._compiled_seen = not observers.sees_compiled_code()
        self._began_in_training = {id(m) for m in selection.modules.values() if m.training}
        self.seen: WeakKeyDictionary[nn.Module, Seen] = WeakKeyDictionary()

    def began_in_training(self, module: nn.Module | None) -> bool:
        """Tell a watched module's mode when the step began."""
        return id(module) in self._began_in_training

    def start(self) -> None:
        """Begin to watch."""
        observers.add(self)

    def stop(self) -> None:
        """Watch no longer; harmless where it does not watch."""
        observers.discard(self)

    def ran(self) -> bool:
        """Tell whether anything ran that could have changed what is watched, as far as seen."""
        return (
            self._forward_seen
            or self._optimizer_seen
            or self._compiled_seen
            or _marks(self._model) != self._marks
        )

    def saw_forward(self, module: nn.Module) -> None:
        """Note that a module is about to run."""
        if not self._forward_seen:
            self._forward_seen = id(module) in self._watched or _hides_watched(
                module, self._watched
            )
        if _is_compiled(module):
            for layer in module.modules():
                if id(layer) in self._watched and has_known_forward(layer):
                    self._of(layer).in_compiled_code |= uses_batch_statistics(layer)

    def saw_batch_statistics(self, layer: nn.Module) -> None:
        """Note that a BN layer normalises a batch with batch statistics."""
        self._of(layer).batches += 1

    def saw_training_set(self, module: nn.Module, frame: FrameType) -> None:
        """Note that a module is being put in training mode."""
        if id(module) not in self._watched or not is_bn_layer(module):
            return
        seen = self._of(module)
        if seen.used_batch_statistics:
            return  # what led to the first batch is what counts
        flips = not module.training
        seen.flipped |= flips
        restores = id(module) in self._began_in_training and frame.f_code.co_name != "train"
        if (flips or seen.put_in_training is None) and not restores:
            seen.put_in_training = place_of_mode_call(frame, module, True)

    def saw_optimizer_step(self, optimizer: Optimizer) -> None:
        """Note that an optimizer has stepped."""
        if not self._optimizer_seen:
            mine = {id(parameter) for parameter in self._model.parameters()}
            mine |= {id(watched.tensor) for watched in self._selection.tensors.values()}
            groups = optimizer.param_groups
            self._optimizer_seen = any(id(p) in mine for group in groups for p in group["params"])

    def saw_compiled_code(self) -> None:
        """Note that compiled code runs, in which forwards are unseen."""
        self._compiled_seen = True

    def _of(self, layer: nn.Module) -> Seen:
        return self.seen.setdefault(layer, Seen())


def _marks(model: nn.Module) -> list[tuple[object, ...]]:
    """Return marks that mostly move when state is written: evidence of presence, not of absence."""
    with torch._C.DisableTorchFunction():  # lazy parameters refuse to be asked otherwise
        return [
            (name, id(module), own, id(tensor), None if tensor.is_inference() else tensor._version)
            for name, module in model.named_modules(remove_duplicate=False)
            for _, own, tensor in own_tensors(module)
        ]


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _hides_watched(module: nn.Module, watched: set[int]) -> bool:
    """Tell whether a module runs watched ones below it where Python cannot see it."""
    if not isinstance(module, torch.jit.ScriptModule):
        return False
    return any(id(below) in watched for below in module.modules())
