"""See who writes to watched tensors: look at each operator that torch runs in this thread."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

from torch import Tensor

from pytest_bninvariants import run_config
from pytest_bninvariants.frames import place_of
from pytest_bninvariants.snapshot.changes import is_unchanged
from pytest_bninvariants.snapshot.kept_tensor import KeptTensor
from pytest_bninvariants.torch_internals import private_api
from pytest_bninvariants.trace import assignments
from pytest_bninvariants.trace.memory_index import MemoryIndex
from pytest_bninvariants.verdict import Change, Place, Write

_TORCHS_OWN = ("aten", "prim", "prims", "profiler")
_UNDECLARED = ("running_mean", "running_var")  # many a normalising operator writes them tacitly
_PLUMBING = (__name__, "torch._compile", "torch._dynamo.eval_frame", "torch._ops")
_MOVING = (assignments.DATA_SET, assignments.SWAP, "aten.set_.")
_INDEXED_FOR = 256  # operators; what moves memory untold, as `flatten_parameters` does, is rare


class Tracer(private_api.TorchDispatchMode):  # type: ignore[misc]
    """Find the first write to each of some tensors; a dispatch mode, between `start` and `stop`.

    An operator is suspected if it is handed a sought tensor's memory, under whichever alias, to
    write to. It did write if the bytes differ afterwards.

    Args:
        kept: what a snapshot holds of the tensors, by name.
        closely: also look at one of the tensors after every second operator, so that a write by
            none of them is put between two.
    """

    supports_higher_order_operators = True

    def __init__(self, kept: Mapping[str, KeptTensor], *, closely: bool = False) -> None:
        private_api.require(private_api.A_TRACE)
        super().__init__()
        self._kept = kept
        self._sought = {name: each.watched.tensor for name, each in kept.items()}
        self._writes: dict[str, Write] = {}
        self._seen_unchanged: dict[str, Place | None] = {}
        self._queue = deque(kept if closely else ())
        self._index()

    def start(self) -> None:
        """Begin to trace this thread."""
        assignments.add(self)
        self.__enter__()

    def stop(self) -> None:
        """Trace no longer, wherever among the active modes this one is."""
        if any(mode is self for mode in private_api.current_dispatch_modes()):
            above = []
            while (mode := private_api.pop_mode()) is not self:
                above.append(mode)
            private_api.push_mode(self)
            self.__exit__(None, None, None)
            for mode in reversed(above):
                private_api.push_mode(mode)
        assignments.discard(self)

    def writes(self, changes: Iterable[Change]) -> tuple[Write, ...]:
        """Return who wrote to those tensors that have changed while this traced."""
        sought = [each for each in changes if each.name in self._kept and each.kind != "gone"]
        found = (self._writes.get(each.name) or self._unseen(each) for each in sought)
        return tuple(write for write in found if write is not None)

    def _unseen(self, change: Change) -> Write | None:
        name = change.name
        if not change.same_object:
            return Write(name=name, replaced=True)
        if self._is_unchanged(name):
            return None  # it had changed before
        return self._by_none(name, None)

    def saw_moved(self, tensors: Sequence[Tensor], call: str, frame: FrameType) -> None:
        """Note that tensors have been given other memory."""
        moved = set(map(id, tensors))
        names = [name for name, each in self._sought.items() if id(each) in moved]
        self._note(names, call, frame)

    def saw_replaced(
        self, replaced: Sequence[tuple[Tensor, Tensor]], call: str, frame: FrameType
    ) -> None:
        """Note that other tensors have taken the place of some."""
        now = {id(old): new for old, new in replaced}
        there = {name: now[id(each)] for name, each in self._sought.items() if id(each) in now}
        self._sought |= there
        self._note([*there], call, frame, replaced=True)
        self._index()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self._sought:
            return func(*args, **kwargs)
        suspecting = self._suspecting(func, args, kwargs)
        result = func(*args, **kwargs)
        if suspecting:
            self._note(suspecting, str(func), _caller())
        if self._queue and self._operators_left % 2:
            self._look_at_next(str(func))
        return result

    def _suspecting(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        """Return the sought tensors whose memory an operator is handed to write to."""
        self._operators_left -= 1
        if self._operators_left == 0:
            self._index()
        written = [args[at] if at < len(args) else kwargs.get(key) for at, key in _outputs(func)]
        if not written:
            return []
        with private_api.DisableTorchFunction():
            touched = {
                name
                for tensor in _tensors_in(written)
                for name in self._addresses.overlapping(tensor)
            }
        return [name for name in self._sought if name in touched] if touched else []

    def _note(
        self,
        names: list[str],
        operator: str,
        frame: FrameType | None,
        *,
        replaced: bool = False,
    ) -> None:
        """Note a write to those of some tensors whose bytes differ."""
        changed = [name for name in names if not self._is_unchanged(name)]
        if operator.startswith(_MOVING):
            self._index()
        if changed:
            place = place_of(frame, operator)
            backward = private_api.current_graph_task_id() != -1
            for name in changed:
                self._found(
                    Write(
                        name=name,
                        operator=operator,
                        place=place,
                        in_backward=backward,
                        replaced=replaced,
                    )
                )

    def _look_at_next(self, operator: str) -> None:
        name = self._queue[0]
        self._queue.rotate(-1)
        place = place_of(_caller(), operator)
        if self._is_unchanged(name):
            self._seen_unchanged[name] = place
        else:
            self._found(self._by_none(name, place))

    def _by_none(self, name: str, place: Place | None) -> Write:
        return Write(name=name, between=(self._seen_unchanged.get(name), place))

    def _found(self, write: Write) -> None:
        self._writes[write.name] = write
        del self._sought[write.name]
        if write.name in self._queue:
            self._queue.remove(write.name)

    def _is_unchanged(self, name: str) -> bool:
        with _quietly():
            return is_unchanged(self._kept[name], self._sought[name])

    def _index(self) -> None:
        with _quietly():
            self._addresses = MemoryIndex(self._sought)
        self._operators_left = _INDEXED_FOR


def begin(kept: Mapping[str, KeptTensor]) -> Tracer | None:
    """Begin to trace what a snapshot holds, if that is asked for."""
    trace = run_config.current.trace
    if trace is None:
        return None
    sought = {each.watched.name: each for each in kept.values() if trace.seeks(each.watched.name)}
    tracer = Tracer(sought, closely=trace.names is not None)
    tracer.start()
    return tracer


@cache
def _outputs(func: Any) -> tuple[tuple[int, str], ...]:
    """Return position and name of the arguments that an operator may write to.

    Operators of other libraries are not trusted to declare them all.
    """
    arguments = private_api.declared_arguments(func)
    if arguments is None:
        return tuple((at, "") for at in range(8))
    trusted = func.namespace in _TORCHS_OWN
    return tuple(
        (at, argument.name)
        for at, argument in enumerate(arguments)
        if not trusted
        or argument.name in _UNDECLARED
        or (argument.alias_info is not None and argument.alias_info.is_write)
    )


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def _caller() -> FrameType | None:
    """Return the frame that called an operator."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in _PLUMBING:
        frame = frame.f_back
    return frame


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep other modes and tensors of other classes from hearing of our questions."""
    with private_api.DisableTorchDispatch(), private_api.DisableTorchFunction():
        yield
