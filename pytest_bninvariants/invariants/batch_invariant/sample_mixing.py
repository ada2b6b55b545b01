"""Say what lets samples of a batch depend on each other in eval."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from pytest_bninvariants.diagnosis.wording import name_list, one_or_many
from pytest_bninvariants.evaluation.pytrees import leaves
from pytest_bninvariants.evaluation.rounding import distances
from pytest_bninvariants.instrumentation.observer_api import How, Observer
from pytest_bninvariants.selection.bn_layers import has_stored_statistics
from pytest_bninvariants.selection.model_names import named_modules
from pytest_bninvariants.verdict import Cause

_Kind = Literal["no-stored-statistics", "training-mode", "update-in-eval"]
_ROUNDING = 2.0**-30
"""Far more than float64 rounds, and far less than a sample depends on its mates."""


class Normalising(Observer):
    """Hear which layers of a module normalise with batch statistics in eval."""

    def __init__(self) -> None:
        self.layers: dict[int, nn.Module] = {}

    def saw_batch_statistics(self, layer: nn.Module, how: How, values: Tensor | None) -> None:
        """Keep the layer."""
        self.layers[id(layer)] = layer

    def causes(self, module: nn.Module, prefix: str) -> tuple[Cause, ...]:
        """Return why samples depend on each other.

        Args:
            module: the module that ran.
            prefix: its name.
        """
        found: dict[_Kind, list[str]] = {}
        for name, part in named_modules(module, prefix):
            if id(part) in self.layers:
                found.setdefault(_kind(part), []).append(name)
        return tuple(_cause(kind, names) for kind, names in found.items())


def _kind(layer: nn.Module) -> _Kind:
    if not has_stored_statistics(layer):
        return "no-stored-statistics"
    return "training-mode" if layer.training else "update-in-eval"


def _cause(kind: _Kind, names: list[str]) -> Cause:
    listed = name_list(names)
    has, it, was = (
        one_or_many(names, *pair) for pair in (("has", "have"), ("it", "they"), ("was", "were"))
    )
    why, fix = {
        "no-stored-statistics": (
            f"{listed} {has} no running statistics, so {it} normalised with batch statistics in "
            "eval, too",
            f"build {listed} with track_running_stats=True, and train or load statistics",
        ),
        "training-mode": (
            f"{listed} {was} in training mode although the model was put in eval",
            f"let eval() of the model reach {listed}: train() must pass its mode on",
        ),
        "update-in-eval": (
            f"{listed} normalised with batch statistics although {it} {was} in eval",
            "pass training=self.training to torch.nn.functional.batch_norm",
        ),
    }[kind]
    return Cause(name=kind, layers=tuple(names), why=why, fix=fix)


Recording = dict[tuple[str, int], Tensor]


@contextmanager
def recording(module: nn.Module) -> Iterator[Recording]:
    """Keep the first tensor that each part of a module returns, by name and number of its call."""
    kept: Recording = {}
    handles = [
        part.register_forward_hook(_keeper(name, kept)) for name, part in named_modules(module)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _keeper(name: str, kept: Recording) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        tensors = (leaf for _, leaf in leaves(output, name) if isinstance(leaf, Tensor))
        first = next(tensors, None)
        if first is not None:
            number = sum(1 for key in kept if key[0] == name)
            kept[name, number] = first.detach().clone()

    return keep


def first_apart(whole: Recording, part: Recording, order: tuple[int, ...]) -> str | None:
    """Return the name of the first part of a module whose samples came out otherwise.

    Args:
        whole: what was recorded of the whole batch, in float64.
        part: what was recorded of a batch of some of its samples.
        order: which samples these were.
    """
    for key, output in whole.items():
        other = part.get(key)
        if other is None or not output.dim() or not other.dim() or len(other) != len(order):
            continue
        if len(output) <= max(order) or output[list(order)].shape != other.shape:
            continue
        apart = distances(output[list(order)], other)
        if apart.numel() and float(apart.max()) > _ROUNDING * float(output.abs().max()):
            return key[0]
    return None
