"""Graphs of the simulated device, which record operators in a capture, and run them in replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Recorder(TorchDispatchMode):
    """Record each operator; what it wrote to its arguments is put back, as if it had not run."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Callable[[], None]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not any(each.device.type == "simdev" for each in _tensors((args, kwargs))):
            return func(*args, **kwargs)  # the host goes on as ever
        memory = [_bytes_of(each) for each in _tensors((args, kwargs))]
        before = [each.clone() for each in memory]
        results = func(*args, **kwargs)
        for now, values in zip(memory, before, strict=True):
            now.copy_(values)

        def run() -> None:
            again = _tensors(func(*args, **kwargs))
            for result, values in zip(_tensors(results), again, strict=True):
                if result.data_ptr() != values.data_ptr():
                    result.data.copy_(values)

        self.operators.append(run)
        return results


def _tensors(nest: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor))


def _bytes_of(tensor: Tensor) -> Tensor:
    """Return all the memory that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


class SimulatedGraph:
    """A graph with the methods of `torch.cuda.CUDAGraph`; use it as a context to capture one.

    Backward passes are recorded, too: autograd hands the dispatch modes on to its threads.
    """

    capturing: ClassVar[bool] = False

    def __init__(self) -> None:
        self._recorder = _Recorder()

    def capture_begin(self) -> None:
        """Begin to record operators."""
        SimulatedGraph.capturing = True
        self._recorder.__enter__()

    def capture_end(self) -> None:
        """Stop recording."""
        self._recorder.__exit__(None, None, None)
        SimulatedGraph.capturing = False

    def replay(self) -> None:
        """Run what was recorded, on the same memory."""
        with torch.no_grad():
            for run in self._recorder.operators:
                run()

    def __enter__(self) -> None:
        self.capture_begin()

    def __exit__(self, *_: object) -> None:
        self.capture_end()
