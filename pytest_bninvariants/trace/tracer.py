"""Find who writes to watched tensors: look at each operator that torch runs in this thread."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pytest_bninvariants import run_config
from pytest_bninvariants.devices import is_capturing
from pytest_bninvariants.frames import place_of
from pytest_bninvariants.snapshot.changes import is_unchanged
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.torch_internals import private_api
from pytest_bninvariants.trace import assignments
from pytest_bninvariants.trace.memory_index import MemoryIndex
from pytest_bninvariants.trace.operators import tensors_in, written_arguments
from pytest_bninvariants.verdict import Change, Place, Write

# Modules whose frames lie between an operator and the code that called it.
_DISPATCH_MODULES = (__name__, "torch._compile", "torch._dynamo.eval_frame", "torch._ops")
_GIVING_OTHER_MEMORY = (assignments.DATA_SET, assignments.SWAP, "aten.set_.")
# Operators between two updates of the index. Few operations move memory without an assignment or
# `set_`, as the `flatten_parameters` of RNNs does, and an update takes as long as many operators.
_OPERATORS_PER_INDEX = 256


class Tracer(private_api.TorchDispatchMode):  # type: ignore[misc]
    """Find the first write to each of some tensors; a dispatch mode, between `start` and `stop`.

    An operator is suspect if an argument that it may write to shares memory with a sought tensor.
    It did write if the bytes differ afterwards.

    Args:
        kept: what a snapshot holds of the tensors, by name.
        closely: also check one of the tensors after every second operator, to find between which
            two operators something else wrote.
    """

    supports_higher_order_operators = True

    def __init__(self, kept: Mapping[str, KeptTensor], *, closely: bool = False) -> None:
        private_api.require(private_api.A_TRACE)
        super().__init__()
        self._kept = kept
        self._sought = {name: each.watched.tensor for name, each in kept.items()}
        self._writes: dict[str, Write] = {}
        self._last_unchanged_at: dict[str, Place | None] = {}
        with _quietly():
            self._devices = {each.device for each in self._sought.values()} - {torch.device("cpu")}
        self._to_check = deque(kept if closely else ())
        self._rebuild_index()

    def start(self) -> None:
        """Begin to trace this thread."""
        assignments.add_listener(self)
        self.__enter__()

    def stop(self) -> None:
        """Stop tracing, wherever this mode is in the stack of active modes."""
        if any(mode is self for mode in private_api.current_dispatch_modes()):
            above = []
            while (mode := private_api.pop_mode()) is not self:
                above.append(mode)
            private_api.push_mode(self)
            self.__exit__(None, None, None)
            for mode in reversed(above):
                private_api.push_mode(mode)
        assignments.remove_listener(self)

    def writes(self, changes: Iterable[Change]) -> tuple[Write, ...]:
        """Return the first write to each tensor that changed during the trace."""
        sought = [each for each in changes if each.name in self._kept and each.kind != "gone"]
        writes = (self._writes.get(each.name) or self._unseen_write(each) for each in sought)
        return tuple(write for write in writes if write is not None)

    def _unseen_write(self, change: Change) -> Write | None:
        name = change.name
        if not change.same_object:
            return Write(name=name, replaced=True)
        if self._is_unchanged(name):
            return None  # it changed before the trace
        return self._write_between(name, None)

    def saw_new_memory(self, tensors: Sequence[Tensor], call: str, frame: FrameType) -> None:
        """Note that a call gave tensors other memory."""
        moved = set(map(id, tensors))
        names = [name for name, each in self._sought.items() if id(each) in moved]
        self._record_if_changed(names, call, frame)

    def saw_replacements(
        self, pairs: Sequence[tuple[Tensor, Tensor]], call: str, frame: FrameType
    ) -> None:
        """Note that a call replaced the first tensor of each pair by the second."""
        now = {id(old): new for old, new in pairs}
        sought = {name: now[id(each)] for name, each in self._sought.items() if id(each) in now}
        self._sought |= sought
        self._record_if_changed([*sought], call, frame, replaced=True)
        self._rebuild_index()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self._sought or self._captures():
            return func(*args, **kwargs)
        suspected = self._suspected_names(func, args, kwargs)
        result = func(*args, **kwargs)
        if suspected:
            self._record_if_changed(suspected, str(func), _caller())
        if self._to_check and self._operators_left % 2:
            self._check_next(str(func))
        return result

    def _captures(self) -> bool:
        """Tell whether a device graph is captured: then nothing runs, and nothing can be read."""
        return any(map(is_capturing, self._devices))

    def _suspected_names(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[str]:
        """Return the names of the sought tensors that an operator may write to."""
        self._operators_left -= 1
        if self._operators_left == 0:
            self._rebuild_index()
        written = written_arguments(func, args, kwargs)
        if not written:
            return []
        with private_api.DisableTorchFunction():
            touched = {
                name
                for tensor in tensors_in(written)
                for name in self._memory_index.overlapping(tensor)
            }
        return [name for name in self._sought if name in touched] if touched else []

    def _record_if_changed(
        self,
        names: list[str],
        operator: str,
        frame: FrameType | None,
        *,
        replaced: bool = False,
    ) -> None:
        """Record a write to each of these tensors whose bytes differ."""
        changed = [name for name in names if not self._is_unchanged(name)]
        if operator.startswith(_GIVING_OTHER_MEMORY):
            self._rebuild_index()
        if changed:
            place = place_of(frame, operator)
            backward = private_api.current_graph_task_id() != -1
            for name in changed:
                self._record(
                    Write(
                        name=name,
                        operator=operator,
                        place=place,
                        in_backward=backward,
                        replaced=replaced,
                    )
                )

    def _check_next(self, operator: str) -> None:
        name = self._to_check[0]
        self._to_check.rotate(-1)
        place = place_of(_caller(), operator)
        if self._is_unchanged(name):
            self._last_unchanged_at[name] = place
        else:
            self._record(self._write_between(name, place))

    def _write_between(self, name: str, place: Place | None) -> Write:
        return Write(name=name, between=(self._last_unchanged_at.get(name), place))

    def _record(self, write: Write) -> None:
        self._writes[write.name] = write
        del self._sought[write.name]
        if write.name in self._to_check:
            self._to_check.remove(write.name)

    def _is_unchanged(self, name: str) -> bool:
        with _quietly():
            return is_unchanged(self._kept[name], self._sought[name])

    def _rebuild_index(self) -> None:
        with _quietly():
            self._memory_index = MemoryIndex(self._sought)
        self._operators_left = _OPERATORS_PER_INDEX


def start_tracing(kept: Mapping[str, KeptTensor]) -> Tracer | None:
    """Start to trace those tensors of a snapshot that `--bn-trace` asks for, if it is on."""
    trace = run_config.current.trace
    if trace is None:
        return None
    sought = {each.watched.name: each for each in kept.values() if trace.seeks(each.watched.name)}
    tracer = Tracer(sought, closely=trace.names is not None)
    tracer.start()
    return tracer


def _caller() -> FrameType | None:
    """Return the frame that called an operator."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in _DISPATCH_MODULES:
        frame = frame.f_back
    return frame


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide what the tracer runs from other modes and from subclasses of Tensor."""
    with private_api.DisableTorchDispatch(), private_api.DisableTorchFunction():
        yield
