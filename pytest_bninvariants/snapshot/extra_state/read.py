"""Read what a model holds beside its parameters and buffers.

That is what `get_extra_state()` returns, and what a library's subclass of Parameter carries, such
as the scales of a quantised weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO

from torch import Tensor, nn

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection.model_names import covers
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import EXTRA_STATE
from pytest_bninvariants.selection.selection_plan import Selection
from pytest_bninvariants.selection.walk import join
from pytest_bninvariants.snapshot.extra_state.compare import ExtraValue
from pytest_bninvariants.snapshot.kept_tensor import TensorCopy
from pytest_bninvariants.snapshot.tensor_bytes import READ_ERRORS
from pytest_bninvariants.torch_internals.private_api import is_traceable_wrapper_subclass

_NUMBERS = (int, float, complex)
_CONSTANTS = (*_NUMBERS, bool, str, bytes, type(None))
_MOST_DEEP = 6  # levels of nested values


def read_extra_state(selection: Selection, scope: Scope) -> dict[str, ExtraValue]:
    """Return the values that a scope covers, by name; the caller must hold `undisturbed()`.

    Raises:
        GateError: if a module's `get_extra_state()` raises.
    """
    values = dict(_of_tensors(selection))
    if scope.buffers:
        values |= _of_modules(selection, scope)
    return values


def _of_modules(selection: Selection, scope: Scope) -> Iterator[tuple[str, ExtraValue]]:
    kinds = {kind for kind in set(map(type, selection.modules.values())) if _has_extra_state(kind)}
    if not kinds:
        return
    watched = {id(module) for module in selection.modules.values() if type(module) in kinds}
    for name, module in selection.names.modules.items():
        keys = [join(each, EXTRA_STATE) for each in (name, selection.names.bare[name])]
        if id(module) in watched and _covers(selection, scope, keys):
            for path, value in _leaves(_extra_state_of(module, name), keys[0], _CONSTANTS):
                yield path, ExtraValue(name, value)


def _has_extra_state(kind: type[nn.Module]) -> bool:
    return kind.get_extra_state is not nn.Module.get_extra_state


def _covers(selection: Selection, scope: Scope, keys: list[str]) -> bool:
    def any_covers(patterns: tuple[str, ...]) -> bool:
        stripped = map(selection.names.strip_wrappers, patterns)
        return any(covers(pattern, *keys) for pattern in stripped)

    return (not scope.modules or any_covers(scope.modules)) and not any_covers(scope.exclude)


def _extra_state_of(module: nn.Module, name: str) -> object:
    try:
        return module.get_extra_state()
    except Exception as error:
        advice = f"leave it out with exclude={join(name, EXTRA_STATE)!r}"
        text = f"get_extra_state() of {name or 'the model'} raised {type(error).__name__}: {error}"
        raise GateError(f"cannot compare {text}; {advice}") from error


def _of_tensors(selection: Selection) -> Iterator[tuple[str, ExtraValue]]:
    table = selection.tensors
    kinds = {kind for kind in set(map(type, table.tensors)) if _may_carry_state(kind)}
    if not kinds:
        return
    for watched in table.values():
        tensor = watched.tensor
        if type(tensor) in kinds and not is_traceable_wrapper_subclass(tensor):
            for path, value in _leaves(vars(tensor), watched.name, _NUMBERS):
                yield path, ExtraValue(watched.layer, value)


def _may_carry_state(kind: type) -> bool:
    """Tell whether a class of tensors is a library's own; torch's keep caches beside them."""
    return not kind.__module__.startswith("torch.") and kind not in (Tensor, nn.Parameter)


def _leaves(
    value: object, path: str, constants: tuple[type, ...], depth: int = 0
) -> Iterator[tuple[str, str | TensorCopy]]:
    """Yield tensors and constants in nested values; skip what cannot be compared."""
    if isinstance(value, Tensor):
        try:
            yield path, TensorCopy.from_tensor(value)
        except READ_ERRORS:
            return
    elif isinstance(value, BytesIO):
        yield path, repr(value.getvalue())
    elif type(value) in constants:
        yield path, repr(value)
    elif depth < _MOST_DEEP and not isinstance(value, nn.Module | type):
        for name, part in _parts(value):
            yield from _leaves(part, f"{path}.{name}", constants, depth + 1)


def _parts(value: object) -> Iterator[tuple[object, object]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif not callable(value):
        yield from getattr(value, "__dict__", {}).items()
