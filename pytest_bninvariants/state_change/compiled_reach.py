"""Tell which modules compiled code can reach: what it does inside is not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import CodeType, FrameType, FunctionType, MethodType, ModuleType

from torch import Tensor, nn

from pytest_bninvariants.attributes import attributes_of
from pytest_bninvariants.torch_internals import dynamo

_LEAVES = (str, bytes, int, float, complex, type(None), Tensor)
_MOST = 20_000  # values to look at; what holds more may hold anything


class CompiledReach:
    """Tell which modules the compiled code that runs can reach.

    What a function can reach is found once, what its arguments can reach at each call.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, set[int] | None]] = {}

    def modules_from(self, frame: FrameType | None) -> set[int] | None:
        """Return the ids of the modules that code compiled below a frame can reach; None if any.

        Args:
            frame: a frame that runs in compiled code, or is about to run it.
        """
        calls = list(dynamo.compiled_calls(frame))
        reached: set[int] | None = set() if calls else None
        for function, arguments in calls:
            if id(function) not in self._known:
                self._known[id(function)] = function, _modules_reached([function])
            for modules in (self._known[id(function)][1], _modules_reached(arguments)):
                reached = None if reached is None or modules is None else reached | modules
        return reached


def _modules_reached(roots: Sequence[object]) -> set[int] | None:
    """Return the ids of all modules that values lead to; None if that takes too long to find."""
    modules: set[int] = set()
    seen: dict[int, object] = {}  # keeps them alive, so that no id stands for two
    waiting = [iter(roots)]
    while waiting:
        for value in waiting.pop():
            if len(seen) > _MOST:
                return None
            if isinstance(value, _LEAVES) or id(value) in seen:
                continue
            seen[id(value)] = value
            if isinstance(value, nn.Module):
                modules.add(id(value))
            waiting.append(_held_by(value))
    return modules


def _held_by(value: object) -> Iterator[object]:
    """Yield what a value holds, and what the code of a function names."""
    if isinstance(value, FunctionType):
        yield from _named_in(value)
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, dict):
        yield from list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from list(value)
    elif not isinstance(value, type | ModuleType):
        yield from attributes_of(value).values()


def _named_in(function: FunctionType) -> Iterator[object]:
    """Yield what a function's closure, its defaults and the names in its code stand for."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing was assigned to it yet
            continue
    yield from (function.__defaults__, function.__kwdefaults__)
    if (function.__module__ or "").startswith("torch."):
        return
    names = list(_names(function.__code__))
    for name in names:
        named = function.__globals__.get(name)
        yield named
        if isinstance(named, type | ModuleType):  # `models.net`
            yield from (vars(named).get(other) for other in names)


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes in a function's code, and in functions inside."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
