"""What the tests of this folder share: an observer, and a look at what a guard watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from torch import Tensor, nn
from torch.optim import Optimizer

from pytest_bninvariants import Guard
from pytest_bninvariants.instrumentation import installation
from pytest_bninvariants.instrumentation.observer_api import ForwardKind, Observer


class Recorder(Observer):
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, object]] = []

    def ignores(self, module: nn.Module) -> bool:
        return False

    def saw_forward(self, module: nn.Module) -> None:
        self.recorded.append(("forward", module))

    def before_layer(self, layer: nn.Module, x: Tensor | None) -> Callable[[bool], None]:
        self.recorded.append(("layer", x))
        return lambda failed: self.recorded.append(("raised" if failed else "ended", layer))

    def saw_batch_statistics(
        self, layer: nn.Module, kind: ForwardKind, values: Tensor | None
    ) -> None:
        self.recorded.append((kind, layer))
        self.recorded.append(("values", values))

    def saw_mode_set(self, module: nn.Module, training: bool, frame: FrameType) -> None:
        self.recorded.append(("training" if training else "eval", module))

    def before_step(
        self, optimizer: Optimizer, frame: object, *, closure: bool
    ) -> Callable[[], None]:
        return lambda: self.recorded.append(("closure" if closure else "optimizer", optimizer))

    def before_load(self, module: nn.Module, state: object, frame: object) -> Callable[[], None]:
        return lambda: self.recorded.append(("load", module))

    def before_collective(
        self, name: str, tensors: list[Tensor], frame: object
    ) -> Callable[[], None]:
        return lambda: self.recorded.append((name, tensors))

    def saw_compiled_code(self) -> None:
        self.recorded.append(("compilation", None))

    def events(self, kind: str) -> list[object]:
        return [what for recorded, what in self.recorded if recorded == kind]


@contextmanager
def recording(recorder: Recorder | None = None) -> Iterator[Recorder]:
    recorder = Recorder() if recorder is None else recorder
    installation.add(recorder)
    try:
        yield recorder
    finally:
        installation.discard(recorder)


def outcome_of(guard: Guard) -> tuple[bool, int, int | None]:
    """Return whether an invariant holds, and how many layers and tensors were watched."""
    verdict = guard.verdict
    assert verdict is not None, "the guard has not ended"
    return verdict.holds, verdict.layers, verdict.tensors
